from svertka import errors


def test_every_error_of_the_drawn_tree_is_an_svertka_error_with_an_exit_code() -> None:
    drawn = [name for name in vars(errors) if name in (errors.__doc__ or "") and name[0].isupper()]
    assert len(drawn) == 12
    for name in drawn:
        error = getattr(errors, name)
        assert issubclass(error, errors.SvertkaError)
        assert error.exit_code == {"UsageError": 2, "Interrupted": 130}.get(name, 1)
