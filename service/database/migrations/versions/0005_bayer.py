"""The Bayer pattern that a data set declares; those of before hold ordinary pictures."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the revision."""
    op.add_column("datasets", sa.Column("bayer", sa.String(4), nullable=True))
