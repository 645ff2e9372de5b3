"""Dead letters: read whatever they look like, sent again to the queue they came from, or discarded, with a record of each."""
