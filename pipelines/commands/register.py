"""`aweigh register`: a trained detector under a name in MLflow's registry."""

import argparse
import json
import shlex

from pipelines.commands.arguments import Commands, add_json, takes_fields


def add(commands: Commands) -> None:
    """Add `register`."""
    register = commands.add_parser(
        "register",
        help="register a trained detector in MLflow under a name, to serve it and to predict with it",
        description="Creates a version of the registered model NAME, and lets the alias point to it. Of a run, its "
        "best checkpoint is registered. The MLflow of the run is used; --tracking.uri names another.",
    )
    register.add_argument("source", metavar="RUN", help="a run's folder, a checkpoint's, or a weights file")
    register.add_argument("name", metavar="NAME", help="name of the registered model")
    register.add_argument(
        "--alias", default="champion", help='alias of the version (default: champion); "" leaves all aliases alone'
    )
    register.add_argument("--newest", action="store_true", help="the newest checkpoint instead of the best")
    add_json(register, "the version")
    takes_fields(register, run)


def run(known: argparse.Namespace) -> None:
    """Register a detector, and say how it is served and used."""
    from pipelines import console
    from pipelines.registering.register import register

    found = register(known.source, known.name, alias=known.alias, newest=known.newest, flags=known.rest)
    version, identity = found.version, found.trained.identity
    if known.json:
        about = {"name": version.name, "version": version.number, "alias": version.alias, "model_id": version.model_id}
        print(json.dumps({**about, "run": identity.run, "step": identity.step, "uri": found.uri}))
        return
    what = f"{found.trained.detector.name} of {identity.location}, step {identity.step:,}"
    console.say("model", what)
    moved = f", which pointed to version {version.previous}" if version.previous not in (0, version.number) else ""
    pointing = f", alias {version.alias}{moved}" if version.alias else ""
    known_before = "" if version.is_new else " (registered before)"
    print(f"{version.name}, version {version.number}{known_before}{pointing}, in {found.uri}")
    address = shlex.quote(found.address)
    place = f"MLFLOW_TRACKING_URI={shlex.quote(found.uri)} "
    console.say("serve", f"`{place}mlflow models serve -m {address} --env-manager local --port 5001`")
    console.say("predict", f"`{place}aweigh predict {address} photo.jpg --output found`")
