"""The tables that the code speaks of are those that the migrations make."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from hidream.store.schema import METADATA


def test_migrations_arrive_at_the_schema(in_database):
    async def scenario(database):
        def differences(connection):
            return compare_metadata(MigrationContext.configure(connection), METADATA)

        async with database.write() as connection:
            return await connection.run_sync(differences)

    assert in_database(scenario) == []
