"""Does it edit well? A fixed suite of scene edits whose truth is known, a judge, and what may be concluded."""
