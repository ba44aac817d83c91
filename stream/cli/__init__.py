"""The command `fraud`: one thin file a command group."""
