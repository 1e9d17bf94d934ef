"""One module a command: `HELP`, `arguments(parser)`, and `run(args) -> Outcome`.

`surgery --help` imports every one of them, so their imports at the top stay light; torch and all that
needs it is imported inside `run`.
"""
