package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const page = 4096

// SparseDigest is SHA-256 over every page that holds something, with its index
// before it, then the size: the same for a disk however it is stored. It reads
// only what SEEK_DATA shows.
func SparseDigest(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	h := sha256.New()
	buf, zero := make([]byte, 1<<20), make([]byte, page)
	for off := int64(0); off < st.Size(); {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		require.NoError(t, err)
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		require.NoError(t, err)
		for off = data &^ (page - 1); off < hole; {
			clear(buf)
			n, err := f.ReadAt(buf, off)
			if err != io.EOF {
				require.NoError(t, err)
			}
			for at := 0; at < n && off < hole; at, off = at+page, off+page {
				if p := buf[at : at+page]; !bytes.Equal(p, zero) {
					h.Write(binary.LittleEndian.AppendUint64(nil, uint64(off/page)))
					h.Write(p)
				}
			}
		}
	}
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(st.Size())))
	return hex.EncodeToString(h.Sum(nil))
}

// SHA256 is of a whole file.
func SHA256(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.CopyBuffer(h, f, make([]byte, 1<<20))
	require.NoError(t, err)
	return hex.EncodeToString(h.Sum(nil))
}
