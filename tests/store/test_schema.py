"""The tables that the code speaks of are those that the migrations make."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from hidream.store.schema import METADATA


def test_migrations_arrive_at_the_schema(in_database):
    async def scenario(database):
        async with database.write() as connection:
            return await connection.run_sync(lambda sync: compare_metadata(MigrationContext.configure(sync), METADATA))

    assert in_database(scenario) == []


def test_the_schema_is_valid_on_postgresql():
    statements = [str(CreateTable(table).compile(dialect=postgresql.dialect())) for table in METADATA.sorted_tables]
    assert [statement.split()[2] for statement in statements] == ["keys", "workers", "predictions"]
