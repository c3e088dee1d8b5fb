"""What a deployment must prove, its history, the model beside it, and the frames it keeps."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the revision."""
    connection = op.get_bind()
    rows = connection.execute(
        sa.text("SELECT name, model_id, previous_model_id, updated_at FROM deployments")
    ).all()
    # SQLite alters a table by replacing it, which it refuses while rows of another one name its
    # rows.  Deployments alone name models, and are few.
    op.drop_table("deployments")
    with op.batch_alter_table("models") as table:
        table.drop_constraint("uq_models_job_id", type_="unique")
        table.add_column(sa.Column("parent_id", sa.String(32), nullable=True))
        table.add_column(sa.Column("origin", sa.JSON(), nullable=True))
    _create_deployments()
    _create_events()
    _create_shadow_runs()
    _create_kept_frames()
    for name, model_id, previous_model_id, updated_at in rows:
        trail = [] if previous_model_id is None else [{"model": previous_model_id}]
        connection.execute(
            sa.text(
                "INSERT INTO deployments (name, model_id, trail, gate, updated_at) "
                "VALUES (:name, :model_id, :trail, :gate, :updated_at)"
            ),
            {
                "name": name,
                "model_id": model_id,
                "trail": json.dumps(trail),
                "gate": json.dumps({"outcome": "no_constraint"}),
                "updated_at": updated_at,
            },
        )


def _create_deployments() -> None:
    op.create_table(
        "deployments",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("model_id", sa.String(32), nullable=False),
        sa.Column("trail", sa.JSON(), nullable=False),
        sa.Column("promotion_constraint", sa.JSON(), nullable=True),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("keeping", sa.JSON(), nullable=True),
        sa.Column("shadow_run_id", sa.Integer(), nullable=True),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_deployments_model_id_models")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_deployments")),
    )


def _create_events() -> None:
    op.create_table(
        "deployment_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("deployment", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("by", sa.String(200), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("model_before", sa.String(32), nullable=True),
        sa.Column("model_after", sa.String(32), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("ledger_sequence", sa.BigInteger(), nullable=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment"],
            ["deployments.name"],
            name=op.f("fk_deployment_events_deployment_deployments"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment_events")),
    )
    op.create_index("ix_deployment_events_order", "deployment_events", ["deployment", "id"])


def _create_shadow_runs() -> None:
    op.create_table(
        "shadow_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("deployment", sa.String(64), nullable=False),
        sa.Column("model_id", sa.String(32), nullable=False),
        sa.Column("wish", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["deployment"],
            ["deployments.name"],
            name=op.f("fk_shadow_runs_deployment_deployments"),
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_shadow_runs_model_id_models")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shadow_runs")),
    )
    counts = ("compared", "same_verdict", "agreed", "dropped", "failed")
    op.create_table(
        "shadow_counts",
        sa.Column("shadow_run_id", sa.Integer(), nullable=False),
        sa.Column("served_model_id", sa.String(32), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in counts),
        sa.ForeignKeyConstraint(
            ["shadow_run_id"],
            ["shadow_runs.id"],
            name=op.f("fk_shadow_counts_shadow_run_id_shadow_runs"),
        ),
        sa.PrimaryKeyConstraint("shadow_run_id", "served_model_id", name=op.f("pk_shadow_counts")),
    )


def _create_kept_frames() -> None:
    op.create_table(
        "kept_frames",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("deployment", sa.String(64), nullable=False),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("file_sha256", sa.String(64), nullable=False),
        sa.Column("media_type", sa.String(32), nullable=False),
        sa.Column("byte_count", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("shadow_run_id", sa.Integer(), nullable=True),
        sa.Column("shadow_answer", sa.JSON(), nullable=True),
        sa.Column("kept_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment"],
            ["deployments.name"],
            name=op.f("fk_kept_frames_deployment_deployments"),
        ),
        sa.ForeignKeyConstraint(
            ["shadow_run_id"],
            ["shadow_runs.id"],
            name=op.f("fk_kept_frames_shadow_run_id_shadow_runs"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kept_frames")),
    )
    op.create_index("ix_kept_frames_newest", "kept_frames", ["deployment", "cause", "id"])
    op.create_index("ix_kept_frames_sha256", "kept_frames", ["file_sha256"])
