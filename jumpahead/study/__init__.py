"""A study: one TOML file that says what to train, validated before any work.

    schema.py     the tables and their keys, and the SAEs that a study asks for
    load.py       TOML and overrides → a resolved study     save.py     a resolved study → TOML
    checks.py     rules that involve several keys           resolve.py  options of architectures and origins, recipes
    messages.py   validation errors → sentences             tables.py   dataclasses of `sae/` → pydantic models
    template.py   the study that `jumpahead init` writes

docs/study-reference.md lists every key (`python -m tools.study_reference`).
"""
