package e2e

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/need"
)

// A guest program writes and verifies, two seconds a round, and another one counts,
// while snapshots are taken each second, and come and go, until it is done:
// VHDFS_ROUNDS of it, for a soak.
func TestSetsUnderFio(t *testing.T) {
	need.Tool(t, "fio")
	need.Tool(t, "jq")
	m := Start(t, t.TempDir())
	m.Shell(t, `echo path=d.vhds size=128M > .vhdfs/create`)
	stop, end := make(chan struct{}), make(chan error, 1)
	go func() { end <- count(m.Path("d.vhds", "raw"), filepath.Join(m.Images, "counted"), stop) }()
	out := m.Shell(t, `
		fio --name=w --filename=d.vhds/raw --size=96M --rw=randwrite --bs=4k-64k --rate=50m --loops=${VHDFS_ROUNDS:-4} --verify=crc32c --do_verify=1 \
			--verify_fatal=1 --fsync=64 --output-format=json --output=$IMAGES/fio.json > $IMAGES/fio.out 2>&1 & fio=$!
		number() { od -An -t u8 -j $2 -N 8 $1 | tr -d ' '; }
		until [ -s $IMAGES/counted ]; do sleep 0.01; done
		slowest=0; i=0; torn=0
		while kill -0 $fio 2> /dev/null || [ $i -lt 3 ]; do
			i=$((i+1)); counted=$(cat $IMAGES/counted); began=$(date +%s%N)
			mkdir d.vhds/snapshots/s$i
			took=$((($(date +%s%N)-began)/1000000)); [ $took -le $slowest ] || slowest=$took
			first=$(number d.vhds/snapshots/s$i/raw `+strconv.Itoa(firstNumber)+`); second=$(number d.vhds/snapshots/s$i/raw `+strconv.Itoa(secondNumber)+`)
			[ $second -ge $counted ] && [ $first -ge $second ] && [ $first -le $((second+1)) ] || { torn=$((torn+1)); echo "$counted $first $second" >&2; }
			sha256sum d.vhds/snapshots/s$i/raw > $IMAGES/sum$i
			if [ $i -gt 2 ]; then rmdir d.vhds/snapshots/s$((i-2)); rm $IMAGES/sum$((i-2)); echo 1 > d.vhds/optimize; fi
			sha256sum --quiet -c $IMAGES/sum$i
			sleep 1
		done
		wait $fio; echo fio $?
		ls d.vhds/snapshots | wc -l
		echo torn $torn
		echo "$i snapshots, the slowest $slowest ms, counted to $(cat $IMAGES/counted), longest write $(jq '.jobs[0].write.clat_ns.max/1000000|floor' $IMAGES/fio.json) ms, longest fsync $(jq '.jobs[0].sync.lat_ns.max/1000000|floor' $IMAGES/fio.json) ms"`)
	close(stop)
	require.NoError(t, <-end)
	l := lines(out)
	require.Equal(t, []string{"fio 0", "2", "torn 0"}, l[:len(l)-1])
	t.Log(l[3])
}

// Where [count] writes, beyond what fio uses.
const (
	firstNumber  = 100 << 20
	secondNumber = 120 << 20
)

// count writes a number to two places of a disk, flushes after each, and notes it in a
// file, until it is told to stop. Whenever the disk is looked at, the second place is at
// most one behind the first, and neither behind the note.
func count(raw, note string, stop <-chan struct{}) (err error) {
	f, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for n := uint64(1); ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		for _, at := range []int64{firstNumber, secondNumber} {
			if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, n), at); err != nil {
				return err
			}
			if err := f.Sync(); err != nil {
				return err
			}
		}
		if err := os.WriteFile(note+".new", strconv.AppendUint(nil, n, 10), 0o600); err != nil {
			return err
		}
		if err := os.Rename(note+".new", note); err != nil {
			return err
		}
	}
}
