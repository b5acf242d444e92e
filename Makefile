PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export OMP_NUM_THREADS ?= 2

.PHONY: demo test check format install bench bench-quick bench-engine bench-cpu bench-prefixes bench-gpu bench-drafting bench-worth bench-capacity bench-overhead bench-scheduler bench-simulated bench-tune bench-tune-clients bench-tune-losses bench-monitor bench-attacks bench-overload bench-wire bench-links chaos fuzz models models-tuned clean picture soak

picture: $(INSTALLED)  ## the pictures of the monitor, from a run of the demo in which one agent has a slow link
	mkdir -p build
	$(BIN)/python -m bench.demo --record build/seen.jsonl --slow-link-ms 60 --max-new-tokens 400 --timeout-s 400
	for width in 60 100 160; do \
		$(BIN)/python -m bench.picture --seen build/seen.jsonl --out docs/monitor-$$width.svg --width $$width || exit 1; \
	done

demo: $(INSTALLED)  ## a server, six agents, real prompts: under two minutes
	$(BIN)/python -m bench.demo

test: $(INSTALLED)  ## the whole suite, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: $(INSTALLED)  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)

# torch goes first and alone: its pin decides which build everything after it meets.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "GoodSpeed needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

bench: $(INSTALLED)  ## emulated edges, all policies, plots and a reading: under 25 minutes
	$(BIN)/python -m bench.edges

bench-quick: $(INSTALLED)  ## the same in small, into build/: under three minutes
	$(BIN)/python -m bench.edges --quick --folder build/edges

bench-engine: $(INSTALLED)  ## ms per round: packed, padded, a loop over rows
	$(BIN)/python -m bench.engine --json bench/results/engine.json

bench-cpu: $(INSTALLED)  ## rounds on a CPU: before and after, other precisions, llama.cpp
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.cpu --json bench/results/cpu.json

bench-prefixes: $(INSTALLED)  ## what prompts begin with, copied and run again
	$(BIN)/python -m bench.prefixes --json bench/results/prefixes.json

bench-gpu: $(INSTALLED)  ## rounds on one big GPU against what its hardware would need at least: under nine minutes
	$(BIN)/python -m bench.gpu --json bench/results/gpu.json

bench-drafting: $(INSTALLED)  ## guesses a second of one agent's streams, in one batch and one by one
	$(BIN)/python -m bench.drafting --json bench/results/drafting.json

bench-worth: $(INSTALLED)  ## tokens per second of server busy time, against plain decoding and generate
	$(BIN)/python -m bench.worth --json bench/results/worth.json

bench-capacity: $(INSTALLED)  ## streams that a server carries at 10 tokens a second each
	$(BIN)/python -m bench.capacity --json bench/results/capacity.json

bench-overhead: $(INSTALLED)  ## what a round costs beside its forward pass
	$(BIN)/python -m bench.overhead --json bench/results/overhead.json

bench-scheduler: $(INSTALLED)  ## budgets for 10,000 streams
	$(BIN)/python -m bench.scheduler --json bench/results/scheduler.json

bench-simulated: $(INSTALLED)  ## rounds, policies, never worse than plain decoding, 10,000 streams, 100 servers: a virtual clock
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.simulated all

bench-tune: $(INSTALLED)  ## a deployment that records, tunes and swaps its drafts, with a plot: about ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.tuning live

bench-tune-losses: $(INSTALLED)  ## every loss at the same steps, two seeds: an hour and a half
	$(BIN)/python -m bench.tuning losses

bench-tune-clients: $(INSTALLED)  ## the utility-guided loss against others, three clients of one draft
	$(BIN)/python -m bench.tuning clients

bench-monitor: $(INSTALLED)  ## what watching 64 agents costs: under two minutes
	$(BIN)/python -m bench.monitor --json bench/results/monitor.json

bench-wire: $(INSTALLED)  ## bytes per drafted token
	$(BIN)/python -m bench.wire --json bench/results/wire.json

bench-attacks: $(INSTALLED)  ## what honest agents keep beside attackers, and what those gain
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.attacks --json bench/results/attacks.json

bench-overload: $(INSTALLED)  ## ten times the load that is admitted: goodput, and how fast a refusal is: about five minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.overload --json bench/results/overload.json

bench-links: $(INSTALLED)  ## 2,000 agents' links at one server, idle and at work: about four minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.links --json bench/results/links.json

chaos: $(INSTALLED)  ## 16 agents and a server that are killed, links that are cut: every text is the undisturbed run's: over ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.chaos --json bench/results/chaos.json

fuzz: $(INSTALLED)  ## over a million hostile frames: decoders, a server's links, an agent's: a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzzing --json bench/results/fuzz.json

soak: $(INSTALLED)  ## half an hour of arrivals and departures: memory, tasks, descriptors and threads stay flat
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.soak --json bench/results/soak.json --plot bench/results/soak.png

models: $(INSTALLED)  ## train the bundled models again (hours)
	$(BIN)/python -m bench.recipe all

models-tuned: $(INSTALLED)  ## tune the bundled drafts again, from those that are there: over an hour
	$(BIN)/python -m bench.recipe corpus
	$(BIN)/python -m bench.recipe tokenizer
	$(BIN)/python -m bench.recipe tune
	$(BIN)/python -m bench.recipe cards

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
