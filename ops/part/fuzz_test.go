package part_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops/part"
)

// FuzzTable changes a disk of 600 sectors at up to 40 places and seals both GPT
// headers again, so that what lies behind the checksums is reached. Each change
// is 4 bytes of input: offset in the first or last 40 KiB, and a value.
func FuzzTable(f *testing.F) {
	f.Add(false, []byte{})
	f.Add(true, []byte{0, 0, 0xbe, 0x80})
	f.Add(true, []byte{0x02, 0x50, 0xff, 0xff, 0x02, 0x54, 0, 1})
	f.Add(false, []byte{0x01, 0xc2, 5, 0, 0x01, 0xfe, 0x55, 0xaa})
	f.Fuzz(func(t *testing.T, big bool, patches []byte) {
		sector := int64(512)
		if big {
			sector = 4096
		}
		const sectors = 600
		src := gpt{sector: sector, sectors: sectors, parts: map[int]gptPart{
			1: {kind: basicData, first: 100, last: 199}, 2: {kind: basicData, first: 300, last: 399, name: "two"},
		}}.image()
		b := make([]byte, src.size)
		_, err := src.ReadAt(b, 0)
		require.NoError(t, err)
		for i := 0; i+4 <= len(patches) && i < 160; i += 4 {
			p := patches[i : i+4]
			off := int64(p[0]&0x7f)<<8 | int64(p[1])
			if p[0]&0x80 != 0 {
				off = src.size - 1 - off
			}
			b[off%src.size], b[(off+1)%src.size] = p[2], p[3]
		}
		seal(b[sector : 2*sector])
		seal(b[(sectors-1)*sector:])

		m := newImage(src.size)
		m.put(0, b)
		tab, err := part.Read(m, m.size, uint32(sector))
		require.NoError(t, err)
		require.Less(t, m.reads, 400)
		files := tab.Partitions[:0:0]
		for _, p := range tab.Partitions {
			if p.NoFile == "" {
				files = append(files, p)
			}
		}
		for i, p := range files {
			require.Positive(t, p.Start)
			require.Positive(t, p.Length)
			require.LessOrEqual(t, p.Start+p.Length, m.size)
			for _, q := range files[:i] {
				require.True(t, p.Start >= q.Start+q.Length || q.Start >= p.Start+p.Length, "%v overlaps %v", p, q)
			}
			if tab.MinInternalSize != nil {
				require.LessOrEqual(t, p.Start+p.Length, *tab.MinInternalSize)
			}
		}
		require.GreaterOrEqual(t, tab.UnallocatedTail, int64(0))
	})
}
