"""Drafts fine-tuned toward their target, on a deployment's own traffic, guided by what its scheduler maximises.

```
sources -> teaching -> passages -> lessons -> trainer -> a model folder with a card
                          ^           |          |
      the server's --record        objectives   measuring
                                   clients (budgets, weights, goodputs)
```
`passages` needs numpy alone, so that a server can record without what training needs; the rest needs
the extra `tune`.
"""
