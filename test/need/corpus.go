package need

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Row is one line of the corpus manifest. "-" stands for what does not apply.
type Row struct {
	File         string // name to pass to [Corpus]: "folder/name"
	Format       string // vhd, vhdx, vhds, iso, ...
	Type         string
	Creator      string
	VirtualSize  int64  // bytes; 0 where no reader opens it
	ImageSHA256  string // of the unpacked file
	RawSHA256    string // of the whole virtual disk, "-" when too big to have one
	Source       string
	Licence      string
	Remark       string
	BlockSize    string
	Sectors      string // "512/4096"; CHS for a VHD
	Log          string // "clean", "dirty", ...; "-" where there is none
	Parent       string // as recorded, "" for a root
	SparseDigest string // see README.md of the corpus
	Readers      string // which programs agree
	Inner        string
	StoredAs     string // path below the corpus; packed when it ends in .xz
}

const manifestColumns = 18

// CorpusRows is the manifest of the sample images.
func CorpusRows(t testing.TB) []Row {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(corpusDir(t), "MANIFEST.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []Row
	for i, line := range strings.Split(strings.TrimRight(string(b), "\n"), "\n") {
		c := strings.Split(line, "\t")
		if len(c) != manifestColumns {
			t.Fatalf("MANIFEST.tsv: line %d has %d columns, want %d", i+1, len(c), manifestColumns)
		}
		if i == 0 {
			continue // the heading
		}
		size, err := strconv.ParseInt(c[4], 10, 64)
		if err != nil && c[4] != "n/a" {
			t.Fatalf("MANIFEST.tsv: %s: virtual size: %v", c[0], err)
		}
		rows = append(rows, Row{
			File: c[0], Format: c[1], Type: c[2], Creator: c[3], VirtualSize: size,
			ImageSHA256: c[5], RawSHA256: c[6], Source: c[7], Licence: c[8], Remark: c[9],
			BlockSize: c[10], Sectors: c[11], Log: c[12], Parent: c[13], SparseDigest: c[14],
			Readers: c[15], Inner: c[16], StoredAs: c[17],
		})
	}
	return rows
}

// Corpus is the path of a sample image, unpacked, its folder's other images
// beside it so that children find their parents. The files are shared by the
// tests of one binary and read-only: copy one before changing it. They are
// removed when the last test that asked for one has ended.
func Corpus(t testing.TB, name string) string {
	t.Helper()
	src := corpusDir(t)
	folder := filepath.Dir(name)
	unpacked.Lock()
	defer unpacked.Unlock()
	if unpacked.users == 0 {
		dir, err := os.MkdirTemp("", "vhdfs-corpus-")
		if err != nil {
			t.Fatal(err)
		}
		unpacked.dir, unpacked.folders = dir, map[string]error{}
	}
	unpacked.users++
	t.Cleanup(release)
	err, done := unpacked.folders[folder]
	if !done {
		err = unpackFolder(Tool(t, "xz"), filepath.Join(src, folder), filepath.Join(unpacked.dir, folder))
		unpacked.folders[folder] = err
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(unpacked.dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// unpacked is the folder of unpacked images that the tests of a binary share.
var unpacked struct {
	sync.Mutex
	dir     string
	users   int
	folders map[string]error
}

func release() {
	unpacked.Lock()
	defer unpacked.Unlock()
	unpacked.users--
	if unpacked.users == 0 {
		_ = os.RemoveAll(unpacked.dir) // the system clears its temporary folder too
	}
}

func unpackFolder(xz, src, dst string) error {
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dst, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		name := strings.TrimSuffix(e.Name(), ".xz")
		if err := unpackFile(xz, filepath.Join(src, e.Name()), filepath.Join(dst, name)); err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
	}
	return nil
}

func unpackFile(xz, src, dst string) error {
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
	if err != nil {
		return err
	}
	defer out.Close()
	if strings.HasSuffix(src, ".xz") {
		cmd := exec.Command(xz, "-dc", src)
		cmd.Stdout = out
		return cmd.Run()
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(out, in)
	return err
}

// corpusDir is $VHDFS_IMAGES, or shared/images beside the module.
func corpusDir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("VHDFS_IMAGES"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, "MANIFEST.tsv")); err != nil {
			missing(t, "sample images in $VHDFS_IMAGES (%v)", err)
		}
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		found := filepath.Join(dir, "..", "shared", "images")
		if _, err := os.Stat(filepath.Join(found, "MANIFEST.tsv")); err == nil {
			return filepath.Clean(found)
		}
		up := filepath.Dir(dir)
		if up == dir {
			missing(t, "sample images: set VHDFS_IMAGES to their folder")
		}
		dir = up
	}
}
