package track

import (
	"fmt"
	"slices"
)

// ahead is how many regions more are opened when writes come in order, so that not
// each of them waits for a sync.
const ahead = 8

// round is a set of regions that are opened by one sync.
type round struct {
	regions map[int64]bool
	done    chan struct{}
	err     error // valid when done is closed
}

// Write implements [ops.Tracker]. A region that is not open is opened first; the
// writes that wait for regions share one sync.
//
//	region open       nothing of the write is on the disk
//	sync
//	ready             others may go on, too: never before the sync
//	granule noted     in memory
func (t *Tracker) Write(off, n int64) error {
	if n <= 0 {
		return nil
	}
	first, end := off/t.granuleSize(), (off+n-1)/t.granuleSize()+1
	for {
		t.mu.Lock()
		if t.mu.lost != nil {
			t.mu.Unlock()
			return nil
		}
		r, leads := t.markLocked(first, end)
		t.mu.Unlock()
		switch {
		case r == nil:
			return nil
		case leads:
			t.openRound(r)
		default:
			<-r.done
		}
		if r.err != nil {
			return r.err
		}
	}
}

// granuleSize is never 0: a tracker without a table is lost, and asks for none.
func (t *Tracker) granuleSize() int64 { return max(t.granule, 1) }

// each calls f with the part of granules [first, end) in each region.
func (t *Tracker) each(first, end int64, f func(region, from, to int64)) {
	for per := t.perRegion(); first < end; {
		i := first / per
		to := min(end, (i+1)*per)
		f(i, first-i*per, to-i*per)
		first = to
	}
}

// markLocked notes granules where all of their regions are open, or have them noted
// durably; else it gives the round that opens the others, which the caller leads or
// waits for.
func (t *Tracker) markLocked(first, end int64) (*round, bool) {
	var missing []int64
	t.each(first, end, func(i, from, to int64) {
		if l := &t.mu.regions[i]; !l.ready && !l.has(from, to) {
			missing = append(missing, i)
		}
	})
	if len(missing) == 0 {
		t.each(first, end, func(i, from, to int64) { t.mu.regions[i].set(from, to) })
		return nil, false
	}
	r, leads := t.mu.next, false
	if r == nil {
		r, leads = &round{regions: map[int64]bool{}, done: make(chan struct{})}, true
		t.mu.next = r
	}
	for _, i := range missing {
		r.regions[i] = true
	}
	if last := missing[len(missing)-1]; missing[0] > 0 && t.mu.regions[missing[0]-1].ready {
		for i := last + 1; i < min(last+ahead, int64(len(t.mu.regions))); i++ {
			if !t.mu.regions[i].ready {
				r.regions[i] = true
			}
		}
	}
	return r, leads
}

// openRound opens the regions of a round.
func (t *Tracker) openRound(r *round) {
	defer close(r.done)
	t.file.Lock()
	defer t.file.Unlock()
	t.mu.Lock()
	t.mu.next = nil
	list := make([]int64, 0, len(r.regions))
	for i := range r.regions {
		t.mu.regions[i].open = t.mu.active
		list = append(list, i)
	}
	t.mu.Unlock()
	if t.isLost() != nil {
		return
	}
	if err := t.putRegionsLocked(list, "track.open"); err != nil {
		r.err = t.failLocked(err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range list {
		t.mu.regions[i].ready = true
	}
}

// putRegionsLocked writes what memory says of regions, and makes it durable.
func (t *Tracker) putRegionsLocked(list []int64, label string) error {
	slices.Sort(list)
	t.file.used = true
	for k := 0; k < len(list); {
		first := list[k] / perSector
		last := first
		for ; k < len(list) && list[k]/perSector <= last+1; k++ {
			last = list[k] / perSector
		}
		if _, err := t.file.f.WriteAt(t.sectors(first, last+1), regionsAt+first*sectorSize); err != nil {
			return fmt.Errorf("tracking file: write regions: %w", err)
		}
	}
	if err := t.file.f.Sync(label); err != nil {
		return fmt.Errorf("tracking file: %s: %w", label, err)
	}
	return nil
}

// sectors are the sectors [first, end) of the regions.
func (t *Tracker) sectors(first, end int64) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b []byte
	list := make([]region, 0, perSector)
	for i := first; i < end; i++ {
		list = list[:0]
		for k := i * perSector; k < min((i+1)*perSector, int64(len(t.mu.regions))); k++ {
			list = append(list, t.mu.regions[k].region)
		}
		b = append(b, encodeSector(i, list)...)
	}
	return b
}
