"""How an archive arrived; of those of before it is not known how much was verified."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the revision."""
    with op.batch_alter_table("imports") as table:
        table.alter_column("archive_sha256", existing_type=sa.String(64), nullable=True)
        table.add_column(sa.Column("pieces_digest", sa.String(64), nullable=True))
        table.add_column(sa.Column("unverified_bytes", sa.BigInteger(), nullable=True))
