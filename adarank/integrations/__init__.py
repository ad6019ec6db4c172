"""The ways to and from other libraries' formats and loops; none of them is imported before it is asked for."""
