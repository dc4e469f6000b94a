"""The one typed door to the actors: ask, submit, stream, cancel.

One `Client` is one DEALER connection to admission, used from one asyncio loop. Every wait has an end; every failure
is a ServingError.
"""
