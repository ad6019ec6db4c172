"""The ways to and from other libraries' formats and loops. None of those libraries is imported before it is asked for."""
