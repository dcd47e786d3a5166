package fsx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disk is raw of an image beside a model of what it must hold.
type disk struct {
	path   string
	model  []byte
	file   *os.File // through the page cache
	direct *os.File // O_DIRECT
	mapped []byte   // file, shared
	buf    []byte   // of a page's alignment
}

// maxOp is the longest range that is moved at once.
const maxOp = 4 * mib

func newDisk(model []byte) *disk {
	const page = 4096
	b := make([]byte, maxOp+page)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (page - 1)
	return &disk{model: model, buf: b[skip : skip+maxOp]}
}

func (d *disk) open(path string) error {
	d.path = path
	var err error
	if d.file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return err
	}
	if d.direct, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		return errors.Join(err, d.close())
	}
	if d.mapped, err = unix.Mmap(int(d.file.Fd()), 0, len(d.model), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return errors.Join(err, d.close())
	}
	return nil
}

func (d *disk) close() error {
	var errs []error
	if d.mapped != nil {
		errs = append(errs, unix.Munmap(d.mapped))
	}
	for _, f := range []*os.File{d.file, d.direct} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	d.mapped, d.file, d.direct = nil, nil, nil
	return errors.Join(errs...)
}

// do runs one operation on the disk and the model, and compares what it reads.
func (d *disk) do(o op) error {
	fd := int(d.file.Fd())
	switch o.kind {
	case read, readVector, readDirect, mapRead:
		return d.read(o)
	case write, writeMove, direct, mapWrite:
		return d.write(o)
	case punch:
		return d.zeroed(o, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)
	case zero:
		return d.zeroed(o, unix.FALLOC_FL_ZERO_RANGE)
	case fsync:
		return unix.Fsync(fd)
	case fdatasync:
		return unix.Fdatasync(fd)
	case seek:
		return d.seek(o.off)
	case drop:
		return errors.Join(unix.Fsync(fd), unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	case reopen:
		return errors.Join(d.close(), d.open(d.path))
	}
	return fmt.Errorf("unknown operation %q", o.kind)
}

func (d *disk) read(o op) error {
	b := d.buf[:o.n]
	var n int
	var err error
	switch o.kind {
	case readVector:
		third := o.n / 3
		n, err = unix.Preadv(int(d.file.Fd()), [][]byte{b[:third], b[third : 2*third], b[2*third:]}, o.off)
	case readDirect:
		n, err = d.direct.ReadAt(b, o.off)
	case mapRead:
		err = faulting(func() { n = copy(b, d.mapped[o.off:]) })
	default:
		n, err = d.file.ReadAt(b, o.off)
	}
	if err != nil && err != io.EOF {
		return err
	}
	if int64(n) != o.n {
		return fmt.Errorf("read %d bytes, want %d", n, o.n)
	}
	return d.compare(b, o.off)
}

// compare says where bytes that were read at off are not the model's.
func (d *disk) compare(b []byte, off int64) error {
	want := d.model[off : off+int64(len(b))]
	if bytes.Equal(b, want) {
		return nil
	}
	first, bad := -1, 0
	for i := range b {
		if b[i] != want[i] {
			if first < 0 {
				first = i
			}
			bad++
		}
	}
	return fmt.Errorf("%d bytes differ, the first at %#x: %#02x, want %#02x", bad, off+int64(first), b[first], want[first])
}

func (d *disk) write(o op) error {
	b := d.buf[:o.n]
	fillNoise(b, o.seed)
	copy(d.model[o.off:], b)
	var err error
	switch o.kind {
	case writeMove:
		if _, err = d.file.Seek(o.off, io.SeekStart); err == nil {
			_, err = d.file.Write(b)
		}
	case direct:
		_, err = d.direct.WriteAt(b, o.off)
	case mapWrite:
		err = faulting(func() { copy(d.mapped[o.off:], b) })
	default:
		_, err = d.file.WriteAt(b, o.off)
	}
	return err
}

func (d *disk) zeroed(o op, mode uint32) error {
	clear(d.model[o.off : o.off+o.n])
	return unix.Fallocate(int(d.file.Fd()), mode, o.off, o.n)
}

// maxRuns bounds one walk over data and holes.
const maxRuns = 64

// seek walks the runs from off on: a hole must be zeros, and both must get on.
func (d *disk) seek(off int64) error {
	size := int64(len(d.model))
	for range maxRuns {
		data, err := unix.Seek(int(d.file.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = size, nil
		}
		if err != nil || data < off || data > size {
			return fmt.Errorf("SEEK_DATA from %#x: %#x, %v", off, data, err)
		}
		for i, b := range d.model[off:data] {
			if b != 0 {
				return fmt.Errorf("SEEK_DATA from %#x: %#x leaves out %#02x at %#x", off, data, b, off+int64(i))
			}
		}
		if data == size {
			return nil
		}
		hole, err := unix.Seek(int(d.file.Fd()), data, unix.SEEK_HOLE)
		if err != nil || hole <= data || hole > size {
			return fmt.Errorf("SEEK_HOLE from %#x: %#x, %v", data, hole, err)
		}
		if off = hole; off == size {
			return nil
		}
	}
	return nil
}

// whole compares the whole disk.
func (d *disk) whole() error {
	for off := int64(0); off < int64(len(d.model)); off += maxOp {
		if err := d.read(op{kind: read, off: off, n: min(maxOp, int64(len(d.model))-off)}); err != nil {
			return err
		}
	}
	return nil
}

// faulting touches mapped memory: an error of the disk is a fault.
func faulting(touch func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("mapped memory: %v", r)
		}
	}()
	touch()
	return nil
}

// fillNoise makes bytes of which none is zero, so that zeros are seen.
func fillNoise(b []byte, seed uint64) {
	rng := rand.NewPCG(seed, 1)
	for i := 0; i < len(b); i += 8 {
		x := rng.Uint64() | 0x0101010101010101
		for k := i; k < min(i+8, len(b)); k++ {
			b[k] = byte(x)
			x >>= 8
		}
	}
}
