"""What layout an archive has, as named or recognized."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the revision."""
    op.add_column("imports", sa.Column("layout", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Undo the revision."""
    op.drop_column("imports", "layout")
