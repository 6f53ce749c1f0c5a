"""The command line: each command parses, calls one function and prints what it returns.

Nothing heavy is imported here, so that ``stillhouse --help`` answers at once; every command
imports what it needs inside.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.errors import StillhouseError

USER_ERROR = 2

app = typer.Typer(
    name="stillhouse",
    help="Distil large language models into small ones that are good at your own work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(help="Recipe file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides, for example stages.0.optimisation.learning_rate=1e-4.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in output.dir.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["STILLHOUSE_DEBUG"] = "1"


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="JSONL or Parquet file, folder of them, or hf://org/dataset.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the recipe.")] = Path("recipe.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing recipe.")] = False,
) -> None:
    """Look at your data and write a commented recipe for it."""
    from stillhouse.cli.commands import init_recipe

    init_recipe(data, output, overwrite=overwrite)


@app.command()
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check everything that can be checked without training, and print the resolved recipe."""
    from stillhouse.cli.commands import validate_recipe

    validate_recipe(recipe, overrides or [])


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Distil: evaluate, train, evaluate again, and write the model and its report.

    The same command resumes a run that was interrupted. Under torchrun it runs on many processes.
    """
    from stillhouse.cli.commands import train_recipe

    train_recipe(recipe, overrides or [], overwrite=overwrite)


@app.command()
def capture(
    recipe: RecipePath,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Share the work out over so many processes.")] = None,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Tasks of the Ray cluster in RAY_ADDRESS, or of one here.")
    ] = False,
) -> None:
    """Score the training data with the teacher once, into the recipe's cache; only what is missing.

    A capture that was killed goes on where it was. With GPUs, each worker has one.
    """
    from stillhouse.cli.cache import capture_targets

    capture_targets(recipe, overrides or [], workers=workers, on_ray=on_ray)


@app.command()
def synthesize(
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in synthesis.dir.")] = False,
    writer_rows: Annotated[
        Path | None, typer.Option(help="Only write rows that teach a model to write inputs, into this file.")
    ] = None,
    rows_per_seed: Annotated[int, typer.Option(min=1, help="Such rows for each seed.")] = 1,
) -> None:
    """Make new rows from human ones: a model writes inputs and answers them, and filters drop the rest.

    The same command goes on where a killed one stopped.
    """
    from stillhouse.cli.synthesize import synthesize_rows
    from stillhouse.cli.synthesize import writer_rows as write_writer_rows

    if writer_rows is not None:
        write_writer_rows(recipe, overrides or [], writer_rows, rows_per_seed)
    else:
        synthesize_rows(recipe, overrides or [], overwrite=overwrite)


@app.command()
def arms(
    recipe: RecipePath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study.")] = Path("runs/arms"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    ratios: Annotated[str, typer.Option(help="Fewer synthetic rows for each human one, for example 1,3.")] = "",
    sizes: Annotated[str, typer.Option(help="Fewer human rows, for example 50,100.")] = "",
    synthetic: Annotated[
        str | None, typer.Option(help="File of synthetic rows; may hold {human} and {seed}. Else stage one's.")
    ] = None,
) -> None:
    """Write the study of a two-stage recipe beside its controls: each stage alone, reversed, mixed, more updates."""
    from stillhouse.cli.arms import ArmsOptions, write_arms

    write_arms(recipe, ArmsOptions(seeds, ratios, sizes, synthetic, output))


cache_app = typer.Typer(help="Look after a cache of teacher targets.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
CacheFolder = Annotated[Path, typer.Argument(help="Folder of the cache.", show_default=False)]


@cache_app.command("info")
def cache_info(folder: CacheFolder) -> None:
    """Print what a cache is of, how much is in it, and its size, as JSON."""
    from stillhouse.cli.cache import print_info

    print_info(folder)


@cache_app.command("verify")
def cache_verify(folder: CacheFolder) -> None:
    """Read every shard and compare checksums; exit code 2 when one is damaged."""
    from stillhouse.cli.cache import verify_cache

    verify_cache(folder)


@cache_app.command("prune")
def cache_prune(
    folder: CacheFolder,
    recipe: Annotated[Path | None, typer.Option(help="Keep only the training documents of this recipe.")] = None,
) -> None:
    """Remove damaged shards, leftovers of killed captures, and documents that a recipe does not use."""
    from stillhouse.cli.cache import prune_cache

    prune_cache(folder, recipe)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, hub name, GGUF file or package:NAME.")],
    data: Annotated[str, typer.Argument(help="JSONL or Parquet file, folder of them, or hf://org/dataset.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the numbers as JSON.")] = None,
    metrics: Annotated[str, typer.Option(help="auto, or names separated by commas.")] = "auto",
    samples_out: Annotated[Path | None, typer.Option(help="Write every row's prompt, answer and scores.")] = None,
    compare_with: Annotated[Path | None, typer.Option(help="Compare with another model's --samples-out file.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Also compare with this model's distributions: KL and agreement.")
    ] = None,
    limit_per_domain: Annotated[int | None, typer.Option(min=1, help="Use so many rows of each domain.")] = None,
    generate: Annotated[int, typer.Option(min=0, help="Rows to generate for each score of generated text.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generation.")] = 128,
    max_seq_len: Annotated[int, typer.Option(min=8, help="Longer conversations are cut.")] = 1024,
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    execute_code: Annotated[bool, typer.Option("--execute-code", help="Run generated code, confined.")] = False,
) -> None:
    """Score a model on held-out rows: NLL by domain, and every score that the rows allow, with intervals."""
    from stillhouse.cli.evaluate import EvaluateOptions, evaluate_model_on

    options = EvaluateOptions(
        limit_per_domain,
        generate,
        max_new_tokens,
        max_seq_len,
        precision,
        metrics,
        execute_code,
        output,
        samples_out,
        compare_with,
        teacher,
    )
    evaluate_model_on(model, data, options)


@app.command("lm-eval")
def lm_eval(
    model: Annotated[str, typer.Argument(help="Model folder, hub name, GGUF file or package:NAME.")],
    tasks: Annotated[str, typer.Option(help="Names separated by commas, for example local_arc_easy,gsm8k.")],
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the files of the local_* tasks.")] = None,
    task_dir: Annotated[Path | None, typer.Option(help="Folder with more task files (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many rows of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Worked examples before each question.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest generation; else as the task says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one forward pass.")] = 8,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Put prompts into the chat template.")] = False,
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    execute_code: Annotated[bool, typer.Option("--execute-code", help="Allow tasks that run generated code.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the numbers as JSON.")] = None,
) -> None:
    """Run tasks of lm-evaluation-harness on a model (needs the extra lm-eval)."""
    from stillhouse.cli.lm_eval import run_tasks
    from stillhouse.evaluation.lm_eval_bridge import HarnessRequest

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    request = HarnessRequest(
        names, data_dir, task_dir, limit, num_fewshot, max_new_tokens, batch_size, chat_template, execute_code
    )
    run_tasks(model, request, precision=precision, output=output)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run, study or comparison directory; several runs are compared.")],
    others: Annotated[list[Path] | None, typer.Argument(help="More run directories.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Page of a comparison.")] = None,
) -> None:
    """Write report.html for a run or a study, or one page that compares several runs."""
    from stillhouse.cli.commands import write_report

    write_report(run, others or [], output)


@app.command("open")
def open_report(
    directory: Annotated[Path, typer.Argument(help="Run, study or comparison directory.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Show the report of a directory in the browser, served on this machine alone; written first if need be."""
    from stillhouse.cli.open import open_folder

    open_folder(directory, port=port, browser=not no_browser)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="Study file (YAML).", show_default=False)],
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed runs again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan and the time it takes.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at one time, instead of the file's.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Method to compare with, instead of the file's.")] = None,
) -> None:
    """Run a grid of recipes: axes and seeds from one base recipe.

    Kill it anywhere: the same command goes on. Finished runs are never repeated.
    """
    from stillhouse.cli.study import StudyOptions, study_file

    study_file(file, StudyOptions(retry_failed, dry_run, jobs, baseline))


@app.command()
def compare(
    recipe: RecipePath,
    methods: Annotated[str, typer.Option(help="For example sft,kd,reverse_kl,ddk.")] = "sft,kd",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the study.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed runs again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan and the time it takes.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at one time.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; SFT otherwise.")] = None,
) -> None:
    """Run one recipe with several methods and seeds, and print how much they differ.

    Writes a study file into the output folder; the same command, or `stillhouse study` with that file, goes on.
    """
    from stillhouse.cli.study import CompareOptions, StudyOptions, compare_methods

    options = StudyOptions(retry_failed, dry_run, jobs, baseline)
    compare_methods(recipe, CompareOptions(methods, seeds, output), options)


@app.command()
def advise(
    recipe: RecipePath,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the advice; OUTPUT_DIR-advice otherwise.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the pilot.")] = 3,
    sizes: Annotated[str | None, typer.Option(help="Rows of the pilot's runs, such as 300,1000,3000.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Pilot runs at one time.")] = 1,
    measure_only: Annotated[bool, typer.Option("--measure-only", help="Measure the models, train nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed pilot runs again.")] = False,
) -> None:
    """Ask before a full run: KD or SFT, is the teacher strong enough, which domains lag.

    Measures on your data, runs a small pilot and predicts with intervals. The same command resumes it.
    """
    from stillhouse.cli.advise import AdviseOptions, advise_recipe

    advise_recipe(recipe, overrides or [], output, AdviseOptions(seeds, sizes, jobs, measure_only, retry_failed))


@app.command("check-adviser")
def check_adviser(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study.", show_default=False)],
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; SFT otherwise.")] = None,
) -> None:
    """Count how often the adviser is right when it sees only a study's smaller sizes."""
    from stillhouse.cli.advise import check_adviser as check

    check(study, baseline)


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Run directory or model folder.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, org/name.")],
    public: Annotated[bool, typer.Option("--public", help="Create a public repository (private otherwise).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded.")] = False,
) -> None:
    """Upload the model folder to the Hugging Face hub; the token comes from HF_TOKEN."""
    from stillhouse.cli.commands import push_model

    push_model(run, repo, private=not public, dry_run=dry_run)


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the runs.")] = Path("quickstart"),
    overwrite: Overwrite = False,
) -> None:
    """Distil a 24-layer student from SmolLM2-135M-Instruct, SFT beside KD, in minutes on a CPU."""
    from stillhouse.cli.quickstart import run_quickstart

    run_quickstart(output, overwrite=overwrite)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    try:
        app()
    except StillhouseError as error:
        if os.environ.get("STILLHOUSE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(USER_ERROR)
    except OSError as error:
        # A full disk or a folder that vanished, met outside the places that expect it.
        if os.environ.get("STILLHOUSE_DEBUG"):
            raise
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # noqa: T201
        sys.exit(130)


if __name__ == "__main__":
    main()
