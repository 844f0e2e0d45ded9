"""What of the documentation is written by code: from the registry, the settings, the commands and the records."""
