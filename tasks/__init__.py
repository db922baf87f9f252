"""One stage each, as a Prefect task: its key, its shards, its retries, and what it shows while it works."""
