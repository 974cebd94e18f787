"""Parts of a pipeline that every family uses."""
