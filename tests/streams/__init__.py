"""Texts between agents and servers, any of which may fail, under a virtual clock and without sockets or threads.

The server's side is the server's own `RoundLoop`, whose passes are taken apart so that anything may happen while one
runs; the agents' side is `Generation` and `Lookahead`, driven as `driver.tokens_of` and `Drafting` drive them. The
target is a function of every token that stands in a stream's row of the slab, so that a slot too many or too few,
or a row of somebody else's, shows in the text as surely as a wrong token does.

Within a connection messages keep their order, but for those that name the length they build on: a draft, or a verdict
that ends nothing, may be lost, come again, or be overtaken by its like. A connection that is cut takes with it whatever
was under way, and the server may hear of it late.
"""
