# vhdfs: make demo, make test. As root on Debian both install what they need.

GO ?= go

# Packages that are tested with the race detector: those that many goroutines enter.
RACE = ./ops ./ops/host ./vhdx ./vhd ./fs ./test/sim

PREFIX ?= /usr/local
DESTDIR ?=

.PHONY: build man install test demo bench soak lint needs

build:
	$(GO) build -o bin/vhdfs ./cmd/vhdfs

man: build
	rm -rf bin/man
	bin/vhdfs docs man bin/man

install: build man
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 bin/vhdfs $(DESTDIR)$(PREFIX)/bin/vhdfs
	install -m 644 bin/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1

test: needs lint
	GO="$(GO)" RACE="$(RACE)" ./test/run
	GO="$(GO)" ./test/fuzz 8s

demo: needs build
	./test/demo/demo bin/vhdfs

bench: needs build
	./test/bench/bench bin/vhdfs
	./test/bench/peers bin/vhdfs
	./test/bench/attach bin/vhdfs

# Every engine for hours, one after the other: see docs/testing.md.
soak:
	GO="$(GO)" ./test/soak

lint:
	$(GO) vet ./...
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "gofmt: $$out"; exit 1; fi

needs:
	@./test/needs
