"""Where the event loop and the device thread meet: inbox, channel, generation."""
