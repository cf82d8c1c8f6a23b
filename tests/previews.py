"""Reads the preview of a task from the database."""

import sqlalchemy as sa

from hidream.store.schema import PREVIEWS


async def preview(database, prediction_id):
    """Its step and bytes, or None."""
    wanted = sa.select(PREVIEWS.c.step, PREVIEWS.c.image).where(PREVIEWS.c.prediction_id == prediction_id)
    async with database.read() as connection:
        return (await connection.execute(wanted)).one_or_none()
