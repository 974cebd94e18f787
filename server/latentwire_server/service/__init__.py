"""What the RPCs do: generations as async generators, their recordings, paging."""
