"""`aweigh submit`, `jobs`, `logs` and `stop`: train on a cluster from your own machine.

All checks that are possible here run before anything is sent. The job does not need this process to keep running.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

from pipelines.commands.arguments import Commands, add_json, add_recipe, resolved, takes_fields
from pipelines.errors import ConfigError
from pipelines.hints import did_you_mean

if TYPE_CHECKING:
    from cluster.submit import Job, JobServer
    from pipelines.recipes.settings import Recipe

PACKAGES = ("cluster", "data_shards", "detectors", "pipelines")
_ADDRESS = "address of Ray's dashboard on the head (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)"
_STOP_SECONDS = 150
# Files with secrets that a warning names.
_MOST_NAMED = 3


def add(commands: Commands) -> None:
    """Add the commands that talk to a cluster's job server."""
    submit = commands.add_parser(
        "submit",
        help="train a recipe on a Ray cluster, from here",
        description="Send the working directory to a Ray cluster and train there. The log is followed; Ctrl-C leaves "
        "the job running. After the job has ended, the same command resumes the run.",
    )
    add_recipe(submit)
    add_submission_arguments(submit)
    submit.add_argument("--detach", action="store_true", help="do not follow the log")
    takes_fields(submit, run)

    jobs = commands.add_parser("jobs", help="list what was submitted to a cluster")
    jobs.add_argument("--address", help=_ADDRESS)
    add_json(jobs, "the jobs")
    jobs.set_defaults(run=_jobs)

    logs = commands.add_parser("logs", help="print the output of a submitted run, or the log of one rank")
    logs.add_argument("name", metavar="RUN", help="name of a run or job; or a run's folder, for the logs of its ranks")
    logs.add_argument("--address", help=_ADDRESS)
    logs.add_argument("--no-follow", action="store_true", help="print what is there, and do not wait for more")
    logs.add_argument("--rank", type=int, help="rank whose log of a run's folder is printed (default: 0)")
    logs.set_defaults(run=_logs)

    stop = commands.add_parser("stop", help="end a submitted run; submitting it again resumes")
    stop.add_argument("name", metavar="RUN", help="name of a run or job")
    stop.add_argument("--address", help=_ADDRESS)
    stop.set_defaults(run=_stop)


def add_submission_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that sends a job."""
    parser.add_argument("--address", help=_ADDRESS)
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="one more variable for the job (AWS_*, MLFLOW_*, AWEIGH_*, NCCL_*, GLOO_*, RAY_TRAIN_* are sent anyway)",
    )


def submit_command(
    command: str, recipe_word: str, recipe: "Recipe", flags: Sequence[str], known: argparse.Namespace, *, job_run: str
) -> None:
    """Send `aweigh COMMAND RECIPE FLAGS` to the cluster as a job, follow it, and exit with its status.

    Args:
        command: train or preflight.
        recipe_word: the recipe's name or file, as the user typed it.
        recipe: the resolved recipe, checked by the caller.
        flags: the user's fields, passed on to the job.
        known: address, env and detach.
        job_run: name under which the job is listed.

    Raises:
        ConfigError, ClusterError: an argument cannot be used, the cluster refuses it, or such a job is running.
        SystemExit: with the job's exit status, once it has ended.
    """
    from cluster.package import collect, megabytes
    from cluster.submit import carried_environment
    from data_shards.addresses import shown_address
    from data_shards.counting import counted
    from pipelines.console import say
    from pipelines.recipes.recipe import run_name
    from pipelines.recipes.secrets import recipe_to_send

    here, code = Path.cwd(), Path(__file__).resolve().parents[2]
    extra, name = _recipe_in_package(recipe_word, here)
    environment = carried_environment(os.environ, tuple(known.env))
    if environment.get("MLFLOW_TRACKING_URI", "").startswith(("sqlite", "file", "/", ".")):
        del environment["MLFLOW_TRACKING_URI"]
        say("variables", "MLFLOW_TRACKING_URI names a database of this machine and is not sent; set tracking.uri")
    # Anyone who sees Ray's dashboard sees the command. The secrets in its addresses are in the environment.
    words = ["python", "-m", "pipelines", command, name, *map(shown_address, flags)]
    if not recipe.run.name:
        words += ["--run.name", run_name(recipe)]
    with TemporaryDirectory(prefix="aweigh-") as scratch:
        # The job receives the secrets of the recipe in its environment.
        package = collect(
            here, code, PACKAGES, {name: recipe_to_send(path, Path(scratch)) for name, path in extra.items()}
        )
        server = _server(known.address)
        say("run", f"{run_name(recipe)}, recipe {recipe.recipe}, in {recipe.run.folder}")
        say("package", f"{here}, {counted(len(package.files), 'file')}, {megabytes(package.size_bytes)}")
        for line in package.left_out:
            say("left out", line)
        for line in _secrets_that_are_sent(package.files):
            say("warning", line)
        say("variables", f"{', '.join(sorted(environment)) or 'none'} (their values are not shown)")
        job = server.submit(job_run, shlex.join(words), package, environment)
    say("job", f"{job.id} on {server.address}: {job.entrypoint}")
    say("look", f"{server.address}/#/jobs/{job.id}    Ray's dashboard: nodes, GPUs, logs of every worker")
    if known.detach:
        say("next", f"{_command('logs', job_run, known.address)}    follows it")
        return
    _follow(server, job, known.address)


def run(known: argparse.Namespace) -> None:
    """Submit a training."""
    from pipelines.recipes.recipe import run_name
    from pipelines.training.checks import check_before_submission

    recipe = resolved(known.recipe, known.rest)
    check_before_submission(recipe)
    submit_command("train", known.recipe, recipe, known.rest, known, job_run=run_name(recipe))


def _jobs(known: argparse.Namespace) -> None:
    from pipelines.console import terminal_width

    jobs = _server(known.address).jobs()
    if known.json:
        import dataclasses

        print(json.dumps([dataclasses.asdict(job) for job in jobs]))
        return
    if not jobs:
        print("no job yet; `aweigh submit RECIPE` sends one")
        return
    rows = [("run", "job", "status", "started", "took", "")]
    rows += [(job.run or "-", job.id, job.status.lower(), _date(job.started), _took(job), _last(job)) for job in jobs]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    columns = terminal_width(sys.stdout)
    for *cells, last_line in rows:
        row = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        # In a narrow terminal, the last line of a failed job moves below its row.
        separator = "\n    " if columns and len(row) + 2 + len(last_line) > columns else "  "
        print(f"{row}{separator}{last_line}" if last_line else row)


def _logs(known: argparse.Namespace) -> None:
    if (logs := Path(known.name) / "logs").is_dir():
        if known.address or known.no_follow:
            raise ConfigError(f"{known.name} is a folder here: --address and --no-follow are for runs of a cluster.")
        _rank_log(logs, known.rank or 0)
        return
    if "/" in known.name:
        raise ConfigError(f"{logs} does not exist; give a run's folder, or the name of a run or job.")
    if known.rank is not None:
        raise ConfigError(
            f"--rank reads the logs in a run's folder, and {known.name} is not a folder here: give "
            f"RUN_FOLDER/{known.name} on a machine that mounts it. Ray's dashboard shows the logs of all workers too."
        )
    server = _server(known.address)
    job = _found(server, known.name)
    if known.no_follow:
        print(server.output(job.id), end="")
        return
    _follow(server, job, known.address)


def _stop(known: argparse.Namespace) -> None:
    from pipelines.console import say

    server = _server(known.address)
    job = _found(server, known.name)
    if job.has_ended:
        say("done", f"job {job.id} had already ended: {job.status.lower()}")
        return
    say("stop", f"asked job {job.id} to end; it writes a checkpoint first if it can")
    job = server.stop(job.id, _STOP_SECONDS)
    if not job.has_ended:
        raise ConfigError(f"job {job.id} still runs after {_STOP_SECONDS} s; try again, or see {server.address}.")
    say("done", f"job {job.id} {job.status.lower()}; the same `aweigh submit` resumes from the last checkpoint")


def _follow(server: "JobServer", job: "Job", address: str | None) -> NoReturn:
    """Copy the job's output until it ends, and exit with its status."""
    from pipelines.console import say

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        job = server.follow(job.id, write)
    except KeyboardInterrupt:
        name = job.run or job.id
        say("detached", f"job {job.id} keeps running")
        say("next", f"{_command('logs', name, address)}    follows it again")
        say("", f"{_command('stop', name, address)}    ends it; submitting again resumes")
        sys.exit(130)
    say("done", f"job {job.id} {job.status.lower()}" + (f": {_last(job)}" if job.status == "STOPPED" else ""))
    sys.exit(0 if job.status == "SUCCEEDED" else job.exit_status or 1)


def _rank_log(logs: Path, rank: int) -> None:
    """Print a rank's log from a run's folder, and name the folder of the others."""
    from data_shards.counting import counted
    from pipelines.console import say

    path = logs / f"rank-{rank}.log"
    ranks = sorted(int(file.stem.partition("-")[2]) for file in logs.glob("rank-*.log") if "errors" not in file.name)
    if not path.exists():
        known = ", ".join(map(str, ranks)) or "none"
        raise ConfigError(f"{logs} has no log of rank {rank}; it has those of ranks {known}.")
    with path.open(errors="replace") as lines:
        for line in lines:
            print(line, end="")
    for errors in sorted(logs.glob("rank-*-errors.log")):
        say("errors", f"{errors}, {counted(len(errors.read_text(errors='replace').splitlines()), 'line')}")
    say("logs", f"{counted(len(ranks), 'rank')} in {logs}; --rank N prints another log")


def _found(server: "JobServer", name: str) -> "Job":
    """Return the newest job of a run, or the job of that id."""
    jobs = server.jobs()
    chosen = [job for job in jobs if job.run == name] or [job for job in jobs if job.id == name]
    if not chosen:
        known = dict.fromkeys(word for job in jobs for word in (job.run, job.id) if word)
        hint = did_you_mean(name, known, "`aweigh jobs` lists them.")
        raise ConfigError(f"{server.address} has no run or job {name!r}; {hint}")
    return chosen[-1]


def _secrets_that_are_sent(files: Mapping[str, Path]) -> list[str]:
    """Warn of files with a password in an address: all who can read the cluster's storage can read the package."""
    from data_shards.counting import counted
    from pipelines.recipes.secrets import addresses_with_secrets

    # Not our own code, which has none.
    found = addresses_with_secrets({name: path for name, path in files.items() if name.split("/")[0] not in PACKAGES})
    more = f", and {counted(len(found) - _MOST_NAMED, 'more file')}" if len(found) > _MOST_NAMED else ""
    if not found:
        return []
    return [
        f"{'; '.join(found[:_MOST_NAMED])}{more}: the package has an address with a password or key. Take it out, pass "
        "it with --env, or list the file in .rayignore"
    ]


def _recipe_in_package(word: str, here: Path) -> tuple[dict[str, Path], str]:
    """Return the files to add to the package for a recipe, and the recipe's name there.

    A recipe file is sent even if it is outside the working directory or ignored by git.
    """
    if not word.endswith((".yaml", ".yml")):
        return {}, word
    path = Path(word).resolve()
    inside = path.is_relative_to(here.resolve())
    name = path.relative_to(here.resolve()).as_posix() if inside else f"submitted-{path.name}"
    return {name: path}, name


def _address(given: str | None) -> str:
    from cluster.submit import DEFAULT_ADDRESS

    return given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS


def _server(given: str | None) -> "JobServer":
    """Connect to the cluster's job server; a proxy that may be in the way is named."""
    from cluster.errors import ClusterError
    from cluster.submit import JobServer
    from data_shards.addresses import proxy_hint

    address = _address(given)
    try:
        return JobServer(address)
    except ClusterError as error:
        if not (hint := proxy_hint(address, like_requests=True)):
            raise
        raise ClusterError(f"{error} {hint}") from error


def _command(action: str, name: str, address: str | None) -> str:
    """Write the command for a run as it can be pasted into a shell."""
    return shlex.join(["aweigh", action, name, *(["--address", address] if address else [])])


def _date(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"


def _took(job: "Job") -> str:
    from pipelines.console import duration

    return duration((job.ended or time.time()) - job.started) if job.started else "-"


def _last(job: "Job") -> str:
    """Return the last line that a failed or stopped job printed."""
    lines = job.message.strip().splitlines() if job.status in ("FAILED", "STOPPED") else []
    return lines[-1][:100] if lines else ""
