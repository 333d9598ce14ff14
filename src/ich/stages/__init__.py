"""One file a command: each reads artefacts, calls the rooms, writes artefacts. `plan` says what is made from what."""
