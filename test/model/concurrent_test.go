package model

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// Guests that each own every n-th piece of one disk write, zero, flush and read at
// the same time, through handles of their own: everyone finds what it left. Pieces
// are smaller than a sector, so that neighbours share it.
func TestConcurrentGuests(t *testing.T) {
	const guests, piece, rounds = 6, 200, 400
	for _, c := range Configs() {
		if c.Block != mib && c.Block != 32*kib {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			host, model, err := c.Build(1)
			require.NoError(t, err)
			m := &machine{c: c, host: host, model: model}
			require.NoError(t, m.start())
			var wg sync.WaitGroup
			for g := range guests {
				wg.Go(func() { guest(t, m, int64(g), guests, piece, rounds) })
			}
			wg.Wait()
			require.NoError(t, m.finish(m.parents()))
		})
	}
}

// hotPieces of each guest are all there is, so that guests meet.
const hotPieces = 8

// guest works on the pieces g, g+guests, g+2·guests and so on; the model's bytes there
// are its own.
func guest(t *testing.T, m *machine, g, guests, piece int64, rounds int) {
	h, err := m.lib.Open(m.lib.Top(m.c.name(m.c.Depth)), ops.Write)
	if err != nil {
		t.Error(err)
		return
	}
	rng := rand.New(rand.NewPCG(uint64(g), 3))
	got := make([]byte, piece)
	for range rounds {
		off := (rng.Int64N(hotPieces)*guests + g) * piece
		mine := m.model[off : off+piece]
		switch rng.IntN(8) {
		case 0:
			clear(mine)
			err = h.Zero(off, piece, true)
		case 1:
			err = h.Flush()
		default:
			for i := range mine {
				mine[i] = byte(rng.UintN(256))
			}
			_, err = h.WriteAt(mine, off)
		}
		if err == nil {
			_, err = h.ReadAt(got, off)
		}
		if err != nil || !bytes.Equal(mine, got) {
			t.Errorf("guest %d: piece at %d: %v, same %v", g, off, err, bytes.Equal(mine, got))
			return
		}
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
