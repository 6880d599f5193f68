"""The rendered job as local processes: chart, environment, object storage, tiny parts."""
