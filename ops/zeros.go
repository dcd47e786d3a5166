package ops

import "unsafe"

// ZerosMax is the longest buffer of [Zeros], in bytes.
const ZerosMax = 256 << 10

const memoryPage = 4096

var zeroPages = func() []byte {
	b := make([]byte, ZerosMax+memoryPage)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % memoryPage
	return b[skip : skip+ZerosMax : skip+ZerosMax]
}()

// Zeros is n bytes of zeros to compare with or to write to a host file, at most
// [ZerosMax]. Nobody changes them.
//
// They begin at a page of memory. The kernel takes a buffer that is not in memory
// page by page, and of a process that is killed then it has written the pages
// before: whole sectors, when pages begin where sectors do. Zeros that were never
// touched are such a buffer; one that begins anywhere can leave half a sector.
func Zeros(n int64) []byte { return zeroPages[:n:n] }

// WriteZeros writes zeros over [off, off+n). What a failure leaves of the range is
// undefined, in whole sectors where off is a multiple of 512. Nothing is durable
// before a sync.
func WriteZeros(f File, off, n int64) error {
	for n > 0 {
		k := min(n, ZerosMax)
		if _, err := f.WriteAt(Zeros(k), off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}
