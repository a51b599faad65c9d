"""Parts of VAREdit, instruction editing on Infinity: a source picture as a prefix of the generation."""
