"""Float64 truths, derived another way than the code under test."""
