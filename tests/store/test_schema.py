"""The tables in the code are those that the migrations create."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from hidream.store.schema import METADATA


async def test_migrations_arrive_at_the_schema(database):
    def differences(connection):
        return compare_metadata(MigrationContext.configure(connection), METADATA)

    async with database.write() as connection:
        assert await connection.run_sync(differences) == []
