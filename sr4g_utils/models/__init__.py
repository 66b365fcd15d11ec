"""Models: where they are (:mod:`.source`), whether they are whole (:mod:`.checks`), and loading them (:mod:`.load`)."""
