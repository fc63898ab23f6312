"""The run-time type checker that tests put on every annotated function of nexttok."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
