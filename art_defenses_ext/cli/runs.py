"""The commands on finished runs: ``merge``, ``rerun``, ``add``, ``compare``, ``export``, ``entry``, ``leaderboard``."""

from __future__ import annotations

from pathlib import Path

import click

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.show import say, show_report

FOLDER = click.Path(path_type=Path)


@click.command("merge")
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder of the merged run. By default the folder, if only one is given.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option("--mixed", is_flag=True, help="Merge parts from different devices, versions or numbers of threads too.")
def merge_command(folders: tuple[Path, ...], out: Path | None, overwrite: bool, mixed: bool) -> None:
    """Merge the parts of an evaluation; print and write its report.

    FOLDERS are the folders of the evaluation, which --out named with --shard, or those of single parts.
    """
    from art_defenses_ext.evaluation.merge import merge

    if out is None:
        if len(folders) > 1:
            raise InputError(f"out is missing, and {len(folders)} folders were given; a folder was expected")
        (out,) = folders
    show_report(merge(folders, out, overwrite=overwrite, mixed=mixed), out)


@click.command("rerun")
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder of the repetition. By default it is not kept.")
@click.pass_context
def rerun_command(context: click.Context, run: Path, out: Path | None) -> None:
    """Repeat a finished run from its own manifest, and print which records differ.

    RUN is the folder of a run that the command evaluate made. The exit status is 1 if a record differs.
    """
    from art_defenses_ext.cli.evaluate import Prepared, options_of_run
    from art_defenses_ext.evaluation.report.report import Report
    from art_defenses_ext.evaluation.rerun import rerun
    from art_defenses_ext.evaluation.run.folder import check_out
    from art_defenses_ext.evaluation.run.shard import WHOLE

    if out is not None:
        check_out(out)
    options = options_of_run(run)
    Report.load(run)
    task = Prepared.of(options, WHOLE)
    again = rerun(run, task.classifier, task.data, options.attacks, out=out)
    for line in again.lines():
        say(line)
    context.exit(int(bool(again.differences)))


@click.command("add")
@click.argument("run", type=FOLDER)
@click.argument("adversarial", type=FOLDER)
@click.option(
    "--from", "source", required=True, metavar="NAME, LINK", help="Author of the examples, and optionally a link."
)
def add_command(run: Path, adversarial: Path, source: str) -> None:
    """Add adversarial examples from elsewhere to a finished run; print and write its report.

    RUN is the folder of a run that the command evaluate made. ADVERSARIAL is a file of images: .npz, .npy,
    .safetensors, or a file of torch.save (art-defenses docs howto/add_examples).
    """
    from art_defenses_ext.cli.evaluate import Prepared, options_of_run
    from art_defenses_ext.evaluation.add import add_examples
    from art_defenses_ext.evaluation.report.report import Report
    from art_defenses_ext.evaluation.run.shard import WHOLE

    name, _, link = (part.strip() for part in source.partition(","))
    Report.load(run)
    task = Prepared.of(options_of_run(run), WHOLE)
    show_report(add_examples(run, adversarial, task.classifier, task.data, name=name, link=link or None), run)


@click.command("compare")
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder for the table (JSON, Markdown) and a picture.")
@click.option(
    "--different-attackers", is_flag=True, help="Compare runs with different attackers too, and print the differences."
)
def compare_command(folders: tuple[Path, ...], out: Path | None, different_attackers: bool) -> None:
    """Compare finished runs with the first of them.

    Runs on the same images are compared image by image. FOLDERS are the folders of the runs.
    """
    from art_defenses_ext.evaluation.publish.compare import compare

    comparison = compare(folders, different_attackers=different_attackers)
    comparison.print()
    if out is not None:
        comparison.save(out)


@click.command("export")
@click.argument("run", type=FOLDER)
@click.option("--format", "form", type=click.Choice(["junit", "sarif"]), required=True, help="Format of the file.")
@click.option("--out", type=FOLDER, required=True, help="File to write.")
@click.option("--at-least", type=float, help="Smallest robust accuracy that passes, from 0 to 1.")
@click.pass_context
def export_command(context: click.Context, run: Path, form: str, out: Path, at_least: float | None) -> None:
    """Write the checks of a finished run, and a bound on its robust accuracy, for a forge.

    RUN is the folder of the run. The exit status is 1 if a check failed, or if the robust accuracy is too low or not
    established.
    """
    from art_defenses_ext.evaluation.publish.export import export

    failed = [each for each in export(run, form, out, at_least=at_least) if each.verdict == "failed"]
    for statement in failed:
        say(f"{statement.name}: {statement.finding}", err=True, fg="red")
    context.exit(int(bool(failed)))


@click.command("entry")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="JSON file to write.")
@click.option("--dataset", required=True, help="Name of the data set.")
@click.option("--name", help="Name of the entry. By default the defences with their options.")
@click.option("--link", help="Link to the paper.")
@click.option("--reported", type=float, help="Robust accuracy in the paper, in per cent.")
@click.option("--external", type=float, help="Lower robust accuracy that others have shown, in per cent.")
@click.option(
    "--command", help="Command that made the run, as others can type it. By default as it was typed, without --shard."
)
def entry_command(
    folder: Path, out: Path, dataset: str, name: str | None, link: str | None, reported: float | None,
    external: float | None, command: str | None,
) -> None:  # fmt: skip
    """Write a finished run as an entry of a page of results.

    FOLDER is the folder of the run.
    """
    from art_defenses_ext.evaluation.publish.leaderboard import Entry
    from art_defenses_ext.evaluation.report.report import Report

    report = Report.load(folder)
    Entry.of(
        report, dataset, name=name, link=link, reported=reported, external=external, command=command
    ).save(out)  # fmt: skip


@click.command("schema")
@click.argument("file", type=click.Choice(["report", "entry"]))
def schema_command(file: str) -> None:
    """Print the JSON schema of report.json or of an entry."""
    from json import dumps

    from art_defenses_ext.evaluation.publish.schemas import entry_schema, report_schema

    click.echo(dumps(report_schema() if file == "report" else entry_schema(), indent=1))


@click.command("leaderboard")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, help="Markdown file to write. By default README.md in the folder.")
def leaderboard_command(folder: Path, out: Path | None) -> None:
    """Write a page of all entries in a folder, with a picture.

    FOLDER holds entries, as the command entry writes them.
    """
    from art_defenses_ext.evaluation.publish.leaderboard import save_leaderboard

    save_leaderboard(folder, folder / "README.md" if out is None else out)
