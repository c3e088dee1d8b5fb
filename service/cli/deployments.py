"""``hairline deploy``, ``rollback`` and ``deployments``: what a line serves, and who decided it."""

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import DEFAULT_URL, Url, exit_with

if TYPE_CHECKING:
    from service.serving.deployment_resources import DeploymentEventResource, DeploymentResource

Name = Annotated[str, typer.Option(help="The deployment.")]
By = Annotated[
    str | None,
    typer.Option(envvar="HAIRLINE_USER", help="Who asks, for the history; your login without it."),
]
Reason = Annotated[str | None, typer.Option(help="Why, for the history.")]
OverrideReason = Annotated[
    str | None,
    typer.Option(help="Serve it although it does not prove the constraint; every answer says so."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(deploy)
    app.command()(rollback)
    app.command()(deployments)


def deploy(
    model: Annotated[str, typer.Argument(help="The model (mdl_…).")],
    name: Name = "default",
    max_escape: Annotated[
        float | None,
        typer.Option(help="Of the defective parts of each class, at most this share may pass."),
    ] = None,
    max_overkill: Annotated[
        float | None, typer.Option(help="Of the good parts, at most this share may be rejected.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the proofs asked for.")] = 0.95,
    no_constraint: Annotated[
        bool, typer.Option("--no-constraint", help="Ask nothing of models any more.")
    ] = False,
    override_reason: OverrideReason = None,
    by: By = None,
    reason: Reason = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Serve a model under a name; refused if it does not prove the deployment's constraint.

    The constraint of a deployment stays until another one is named here.
    """
    from service.client import HairlineClient, HairlineError

    constraint = _constraint(max_escape, max_overkill, confidence)
    if no_constraint and constraint:
        raise exit_with("--no-constraint contradicts --max-escape and --max-overkill.")
    wishes: dict[str, Any] = _author(by, reason, override_reason)
    if no_constraint or constraint:
        wishes["constraint"] = constraint
    with HairlineClient(url) as client:
        try:
            answer = client.deploy(name, model, **wishes)
        except HairlineError as error:
            raise exit_with(f"{model} is not served: {error}") from error
    typer.echo(answer.model_dump_json(indent=2) if as_json else _text(answer))


def rollback(
    name: Name = "default",
    given_up: Annotated[
        str | None, typer.Option(help="The model to leave: nothing is done if another is served.")
    ] = None,
    override_reason: OverrideReason = None,
    by: By = None,
    reason: Reason = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Serve the model before again; a second time goes one further back."""
    from service.client import HairlineClient, HairlineError

    with HairlineClient(url) as client:
        try:
            author = _author(by, reason, override_reason)
            answer = client.roll_back(name, given_up=given_up, **author)
        except HairlineError as error:
            raise exit_with(f"{name} was not rolled back: {error}") from error
    typer.echo(answer.model_dump_json(indent=2) if as_json else _text(answer))


def deployments(
    name: Annotated[
        str | None, typer.Argument(help="Show this one's history; without it, list all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List what is served under which name, or what was changed of one, by whom and why."""
    from service.client import HairlineClient, HairlineError

    with HairlineClient(url) as client:
        try:
            if name is None:
                for deployment in client.deployments():
                    typer.echo(deployment.model_dump_json() if as_json else _text(deployment))
                return
            for event in client.deployment_history(name):
                typer.echo(event.model_dump_json() if as_json else _event(event))
        except HairlineError as error:
            raise exit_with(str(error)) from error


def _constraint(
    max_escape: float | None, max_overkill: float | None, confidence: float
) -> dict[str, Any] | None:
    asked = {"escape": max_escape, "overkill": max_overkill}
    limits = {
        name: {"max_rate": rate, "confidence": confidence}
        for name, rate in asked.items()
        if rate is not None
    }
    return limits or None


def _author(by: str | None, reason: str | None, override_reason: str | None) -> dict[str, Any]:
    who = by or _login()
    override = None if override_reason is None else {"reason": override_reason, "by": who}
    return {"by": who, "reason": reason, "override": override}


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        # In a container the user may have a number and no name.
        raise exit_with("Name yourself with --by, for the history.") from error


def _text(deployment: "DeploymentResource") -> str:
    gate = deployment.gate
    before = f", before it {deployment.previous_model}" if deployment.previous_model else ""
    lines = [f"{deployment.name}: {deployment.model}{before} (gate: {gate.outcome})"]
    lines += [f"  proven: {sentence}" for sentence in gate.proven]
    lines += [f"  not proven: {shortfall.detail}" for shortfall in gate.shortfalls]
    lines += [f"  {note}" for note in gate.notes]
    lines += [f"  warning: {warning}" for warning in deployment.warnings]
    if deployment.shadow is not None:
        lines.append(f"  beside it: {deployment.shadow}")
    return "\n".join(lines)


def _event(event: "DeploymentEventResource") -> str:
    moved = (
        f"{event.model_before} -> {event.model_after}"
        if event.model_before not in (None, event.model_after)
        else event.model_after
    )
    outcome = f", gate: {event.gate.outcome}" if event.gate else ""
    why = f": {event.reason}" if event.reason else ""
    return f"{event.at:%Y-%m-%d %H:%M:%S}Z  {event.kind}  {moved}{outcome}  {event.by or '?'}{why}"
