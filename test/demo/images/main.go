// Command images writes a chain of differencing disks for the demonstration,
// which QEMU's tools cannot make: base.vhdx with a letter, monday.avhdx and
// tuesday.avhdx with what changed in it.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"vhdfs/test/fixture"
)

const size = 64 << 20

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: images DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(dir string) error {
	ids := [][16]byte{id(1), id(2), id(3)}
	for i, im := range []struct {
		name, parent, text string
		at                 int64
	}{
		{"base.vhdx", "", "Monday is not there yet. Nor is Tuesday.\n", 0},
		{"monday.avhdx", "base.vhdx", "Monday it rained.\n", 4096},
		{"tuesday.avhdx", "monday.avhdx", "On Tuesday the sun came out.\n", 8192},
	} {
		v := fixture.VHDX{
			Size:          size,
			DataWriteGUID: ids[i],
			Writes:        []fixture.Write{{Off: im.at, Data: page(im.text)}},
		}
		if im.parent != "" {
			v.Parent = &fixture.Locator{Entries: [][2]string{
				{"parent_linkage", fmt.Sprintf("{%s}", text(ids[i-1]))},
				{"relative_path", `.\` + im.parent},
			}}
		}
		if err := v.WriteFile(filepath.Join(dir, im.name)); err != nil {
			return err
		}
	}
	return nil
}

// page is text with line feeds up to 4 KiB, so that head shows it well.
func page(s string) []byte {
	b := make([]byte, 4096)
	for i := range b {
		b[i] = '\n'
	}
	copy(b, s)
	return b
}

func id(n byte) [16]byte { return [16]byte{0xd0, 5: 0x5e, 15: n} }

func text(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}
