package crash

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"vhdfs/test/sim"
)

// Step is one thing that a guest does.
type Step struct {
	Name string
	Do   func(g *Guest) error
	// Lasts says that what it did survives power loss when it answers nil, and
	// that its failure may poison.
	Lasts bool
}

// Steps are the core operations on a disk of at least three blocks, small enough
// that all short sequences of them can be tried.
var Steps = []Step{
	{Name: "write in a hole", Do: func(g *Guest) error { return g.Write(g.Block+g.Unit, g.Unit) }},
	{Name: "write in a block", Do: func(g *Guest) error { return g.Write(2*g.Unit, 2*g.Unit) }},
	{Name: "write over a border", Do: func(g *Guest) error { return g.Write(g.Block-g.Unit, 2*g.Unit) }},
	{Name: "rewrite", Do: func(g *Guest) error { return g.Write(0, g.Unit) }},
	{Name: "zero in a block", Do: func(g *Guest) error { return g.Zero(2*g.Unit, g.Unit, false) }},
	{Name: "zero a block", Do: func(g *Guest) error { return g.Zero(0, g.Block, false) }},
	{Name: "trim a block", Do: func(g *Guest) error { return g.Zero(0, g.Block, true) }},
	{Name: "trim two blocks", Do: func(g *Guest) error { return g.Zero(g.Block, 2*g.Block, true) }},
	{Name: "flush", Do: (*Guest).Flush, Lasts: true},
	{Name: "reopen", Do: (*Guest).Reopen},
	{Name: "kill", Do: (*Guest).Kill},
}

// Sequence is a workload of steps.
type Sequence []Step

func (q Sequence) String() string {
	names := make([]string, len(q))
	for i, s := range q {
		names[i] = s.Name
	}
	return strings.Join(names, ", ")
}

// Sequences are all sequences of one to three steps, of the core operations and
// those that an image has beside them, in a seeded order, so that a part of them
// is a fair sample.
func Sequences(seed uint64, more ...Step) []Sequence {
	var list []Sequence
	steps := append(Steps[:len(Steps):len(Steps)], more...)
	for _, a := range steps {
		list = append(list, Sequence{a})
		for _, b := range steps {
			list = append(list, Sequence{a, b})
			for _, c := range steps {
				list = append(list, Sequence{a, b, c})
			}
		}
	}
	rng := rand.New(rand.NewPCG(seed, 0x5E9))
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// Random is a sequence of n random steps at random places, with those that an
// image has beside the core operations between them.
func Random(seed uint64, n int, more ...Step) Sequence {
	rng := rand.New(rand.NewPCG(seed, 0xACE))
	var q Sequence
	for range n {
		if len(more) > 0 && rng.IntN(20) == 0 {
			q = append(q, more[rng.IntN(len(more))])
			continue
		}
		switch k := rng.IntN(20); {
		case k < 12:
			at, units := rng.Int64(), 1+rng.Int64N(8)
			q = append(q, Step{Name: "random write", Do: func(g *Guest) error { off, n := g.place(at, units); return g.Write(off, n) }})
		case k < 15:
			at, units, unmap := rng.Int64(), 1+rng.Int64N(64), rng.IntN(2) == 0
			q = append(q, Step{Name: "random zero", Do: func(g *Guest) error { off, n := g.place(at, units); return g.Zero(off, n, unmap) }})
		case k < 17:
			q = append(q, Steps[4+rng.IntN(4)])
		case k < 18:
			q = append(q, Steps[8])
		default:
			q = append(q, Steps[9+rng.IntN(2)])
		}
	}
	return q
}

// Wrap is a sequence long enough to go round a log: n times a block gets space,
// is flushed, and gives it back.
func Wrap(n int) Sequence {
	var q Sequence
	for range n {
		q = append(q, Steps[0], Steps[8], Steps[7])
	}
	return q
}

// place turns random numbers into a range of whole sectors on the disk.
func (g *Guest) place(at, units int64) (off, n int64) {
	total := g.Writer.Size() / g.Unit
	first := at % total
	return first * g.Unit, min(units, total-first) * g.Unit
}

// Prepared is a host with an image, and what the image may hold.
type Prepared struct {
	Host    *sim.Host
	History *History
}

// Start is an image as it stands: what it reads as now is what it may hold.
//
//	p, err := s.Start(h)
//	n, err := s.Cut(p, crash.Sequence{{"compact", func(g *crash.Guest) error { … g.Writer … }}}, crash.Options{Deep: 20})
func (s *Subject) Start(h *sim.Host) (*Prepared, error) {
	view, err := s.look(h.Clone(), true, false)
	if err != nil {
		return nil, err
	}
	return &Prepared{Host: h, History: view.exactly(s.Differencing)}, nil
}

// Describe lets a history know what the image says of itself, so that only what a
// guest asks for may change it.
func (s *Subject) Describe(p *Prepared) error {
	view, err := s.look(p.Host.Clone(), false, false)
	if err == nil {
		view.tell(p.History)
	}
	return err
}

// Prepare runs steps on an image without cutting the power.
func (s *Subject) Prepare(h *sim.Host, steps ...Step) (*Prepared, error) {
	p := &Prepared{Host: h, History: NewHistory(s.Differencing)}
	r, _, err := s.Record(p, steps)
	if err != nil {
		return nil, err
	}
	p.Host = r.Base
	for _, e := range r.Events {
		p.History.Note(e)
		if err := p.Host.Apply(e); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Record runs a sequence, and a close, on a clone of a prepared host, with some
// syncs dropped, and gives its recording and how often each sync label was met.
func (s *Subject) Record(p *Prepared, q Sequence, dropped ...string) (*Recording, map[string]int, error) {
	return Job{Summed: s.Summed, Do: func(h *sim.Host) error {
		g, err := NewGuest(s, h)
		if err != nil {
			return err
		}
		for i, step := range q {
			if err := step.Do(g); err != nil {
				return fmt.Errorf("step %d, %s, of %q: %w", i, step.Name, q, err)
			}
		}
		if err := g.Close(); err != nil {
			return fmt.Errorf("close after %q: %w", q, err)
		}
		return nil
	}}.Record(p.Host, dropped...)
}
