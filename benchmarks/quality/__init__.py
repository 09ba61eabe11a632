"""Does it edit well? A suite of scene edits whose truth is known, the paper's protocol over pairs, and reports."""
