"""Settings of the server: flags, environment, configuration file."""
