"""The REST bridge: OpenAI's Images API in front of a Latentwire server."""
