// Command images writes what the benchmark needs:
//
//	huge/      huge.vhdx: 64 TiB of 1 MiB blocks, every entry of its table in use
//	many/      10,000 small images, half VHDX, half VHD
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vhdfs/test/fixture"
)

const (
	images    = 10_000
	blockSize = 1 << 20
	hugeSize  = 64 << 40
	// stateZero is a payload entry that says: this block reads as zeros.
	stateZero = 2
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: images DIR")
		os.Exit(2)
	}
	if err := errors.Join(huge(filepath.Join(os.Args[1], "huge")), many(filepath.Join(os.Args[1], "many"))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// huge fills the whole table after the image was laid out: in the order of the
// table, a chunk's payload entries and then its bitmap entry, which stays 0.
func huge(dir string) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, "huge.vhdx")
	im, err := fixture.VHDX{Size: hugeSize, BlockSize: blockSize}.Build()
	if err != nil {
		return err
	}
	if err := im.WriteFile(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	const chunk = (1 << 23) * 512 / blockSize // payload entries before each bitmap entry
	group := append(bytes.Repeat(binary.LittleEndian.AppendUint64(nil, stateZero), chunk), make([]byte, 8)...)
	many := bytes.Repeat(group, 16)
	const blocks = hugeSize / blockSize
	for at, left := im.BATOff, blocks/chunk; left > 0; left -= 16 {
		if _, err := f.WriteAt(many, at); err != nil {
			return err
		}
		at += int64(len(many))
	}
	return nil
}

func many(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for i := range images {
		id := [16]byte{1}
		binary.BigEndian.PutUint32(id[12:], uint32(i))
		var err error
		if i%2 == 0 {
			err = fixture.VHDX{Size: 64 << 20, DataWriteGUID: id}.WriteFile(filepath.Join(dir, fmt.Sprintf("disk%05d.vhdx", i)))
		} else {
			err = fixture.VHD{Size: 64 << 20, UUID: id}.WriteFile(filepath.Join(dir, fmt.Sprintf("disk%05d.vhd", i)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
