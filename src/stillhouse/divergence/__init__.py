"""The mathematics: divergences, the objective, and the fused linear-divergence."""
