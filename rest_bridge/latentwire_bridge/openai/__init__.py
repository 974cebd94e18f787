"""OpenAI's Images API: fields, requests, responses, streams, errors."""
