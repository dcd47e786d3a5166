package ops

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Operations with every kind of argument, cut like the service's own.
var (
	testResize = &Op{Name: "resize", Args: []Arg{
		{Name: "MaxInternalSize", Short: "size", Kind: ArgSize, Words: []Word{{Text: "min"}}, Required: true, Bare: true, Help: "new size, such as 40G"},
		{Name: "Unsafe", Kind: ArgBool, Help: "cut partitions off"},
	}}
	testMerge = &Op{Name: "merge", Args: []Arg{
		{Name: "DestinationPath", Short: "to", Kind: ArgPath, Bare: true, Help: "an ancestor"},
		{Name: "Keep", Kind: ArgBool, Default: "false", Help: "keep the merged files"},
	}}
	testCompact = &Op{Name: "compact", Args: []Arg{
		{Name: "Mode", Kind: ArgWord, Words: []Word{{"full", 0}, {"quick", 1}}, Default: "quick", Help: "how to look for space"},
	}}
	testIdentify = &Op{Name: "identify", Args: []Arg{
		{Name: "VirtualDiskId", Short: "id", Kind: ArgID, Help: "new id"},
		{Name: "Label", Kind: ArgText, Help: "a name"},
	}}
	testPlain = &Op{Name: "validate"}
)

var someID = GUID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		op   *Op
		in   string
		want Args
		err  string // "": no error
	}{
		{op: testResize, in: "80G", want: Args{"MaxInternalSize": Amount{Bytes: 85899345920}}},
		{op: testResize, in: "80G\n", want: Args{"MaxInternalSize": Amount{Bytes: 85899345920}}},
		{op: testResize, in: "\t 80g \r\n\x00", want: Args{"MaxInternalSize": Amount{Bytes: 85899345920}}},
		{op: testResize, in: "size=3K", want: Args{"MaxInternalSize": Amount{Bytes: 3072}}},
		{op: testResize, in: "SIZE=5m", want: Args{"MaxInternalSize": Amount{Bytes: 5242880}}},
		{op: testResize, in: "maxinternalsize=64T", want: Args{"MaxInternalSize": Amount{Bytes: 70368744177664}}},
		{op: testResize, in: "MaxInternalSize=+10G", want: Args{"MaxInternalSize": Amount{Bytes: 10737418240, Relative: true}}},
		{op: testResize, in: "size=512", want: Args{"MaxInternalSize": Amount{Bytes: 512}}},
		{op: testResize, in: "size=min", want: Args{"MaxInternalSize": Amount{Word: "min"}}},
		{op: testResize, in: "MIN", want: Args{"MaxInternalSize": Amount{Word: "min"}}},
		{op: testResize, in: "1", want: Args{"MaxInternalSize": Amount{Bytes: 1}}},
		{op: testResize, in: "9223372036854775807", want: Args{"MaxInternalSize": Amount{Bytes: 9223372036854775807}}},
		{op: testResize, in: "40G unsafe=yes", want: Args{"MaxInternalSize": Amount{Bytes: 42949672960}, "Unsafe": true}},
		{op: testResize, in: "unsafe=OFF\tsize=40G", want: Args{"MaxInternalSize": Amount{Bytes: 42949672960}, "Unsafe": false}},
		{op: testResize, in: `{"MaxInternalSize": 42949672960, "Unsafe": true}`, want: Args{"MaxInternalSize": Amount{Bytes: 42949672960}, "Unsafe": true}},
		{op: testResize, in: "{\n \"size\": \"40G\",\n \"unsafe\": null\n}\n", want: Args{"MaxInternalSize": Amount{Bytes: 42949672960}}},
		{op: testResize, in: "", want: nil},

		{op: testMerge, in: "1", want: Args{"Keep": false}},
		{op: testMerge, in: "run\n", want: Args{"Keep": false}},
		{op: testMerge, in: "base.vhdx", want: Args{"DestinationPath": "base.vhdx", "Keep": false}},
		{op: testMerge, in: `"my disk.vhdx"`, want: Args{"DestinationPath": "my disk.vhdx", "Keep": false}},
		{op: testMerge, in: `my\ disk.vhdx keep=1`, want: Args{"DestinationPath": "my disk.vhdx", "Keep": true}},
		{op: testMerge, in: `to='a "b" \c'`, want: Args{"DestinationPath": `a "b" \c`, "Keep": false}},
		{op: testMerge, in: `to="a \"b\" \\ \c"`, want: Args{"DestinationPath": `a "b" \ \c`, "Keep": false}},
		{op: testMerge, in: `to=a=b`, want: Args{"DestinationPath": "a=b", "Keep": false}},
		{op: testMerge, in: `"a=b"`, want: Args{"DestinationPath": "a=b", "Keep": false}},
		{op: testMerge, in: `to=pre"fix and"'more'`, want: Args{"DestinationPath": "prefix andmore", "Keep": false}},
		{op: testMerge, in: `to=$HOME/*`, want: Args{"DestinationPath": "$HOME/*", "Keep": false}},
		{op: testMerge, in: `{"DestinationPath":"über\u00e9\n.vhdx"}`, want: Args{"DestinationPath": "überé\n.vhdx", "Keep": false}},

		{op: testCompact, in: "1", want: Args{"Mode": "quick"}},
		{op: testCompact, in: "mode=FULL", want: Args{"Mode": "full"}},
		{op: testCompact, in: "mode=0", want: Args{"Mode": "full"}},
		{op: testCompact, in: `{"Mode":1}`, want: Args{"Mode": "quick"}},

		{op: testIdentify, in: "id={01234567-89AB-CDEF-0123-456789abcdef}", want: Args{"VirtualDiskId": someID}},
		{op: testIdentify, in: `label=a id=01234567-89ab-cdef-0123-456789abcdef`, want: Args{"VirtualDiskId": someID, "Label": "a"}},
		{op: testIdentify, in: "run", want: Args{}},

		{op: testPlain, in: "\n", want: Args{}},
		{op: testPlain, in: "dryrun=true", want: Args{"DryRun": true}},
		{op: testPlain, in: "1 DryRun=yes wait=off", want: Args{"DryRun": true, "Wait": false}},
		{op: testPlain, in: `{"Wait":false,"dryrun":null}`, want: Args{"Wait": false}},
		{op: testMerge, in: "wait=false 1", want: Args{"Keep": false, "Wait": false}},
		{op: testMerge, in: "wait=false base.vhdx", want: Args{"DestinationPath": "base.vhdx", "Keep": false, "Wait": false}},
		{op: testCompact, in: "wait=false", want: Args{"Mode": "quick", "Wait": false}},
		{op: testResize, in: "1 wait=true", want: Args{"MaxInternalSize": Amount{Bytes: 1}, "Wait": true}},
		{op: testPlain, in: " ", want: Args{}},
		{op: testPlain, in: "1\n", want: Args{}},
		{op: testPlain, in: "run", want: Args{}},
		{op: testPlain, in: "{}", want: Args{}},

		{op: testResize, in: "\n", err: "resize: an empty request runs only what takes no arguments; write 1 or run, or size=SIZE|min [unsafe=true|false]"},
		{op: testCompact, in: "\n", err: "an empty request"},
		{op: testResize, in: "unsafe=1", err: "resize: size is required; new size, such as 40G"},
		{op: testResize, in: "size=", err: `size="": bad argument, want a size`},
		{op: testResize, in: "size=-1", err: `size="-1": bad argument`},
		{op: testResize, in: "size=+", err: `size="+": bad argument`},
		{op: testResize, in: "size=G", err: `size="G": bad argument`},
		{op: testResize, in: "size=1.5G", err: `size="1.5G": bad argument`},
		{op: testResize, in: "size=0x10", err: `size="0x10": bad argument`},
		{op: testResize, in: "size=10GB", err: `size="10GB": bad argument`},
		{op: testResize, in: "size=++1", err: `size="++1": bad argument`},
		{op: testResize, in: "=80G", err: `size="=80G": bad argument`},
		{op: testResize, in: "9223372036854775808", err: "more than 9223372036854775807 bytes"},
		{op: testResize, in: "size=8388608T", err: "more than 9223372036854775807 bytes"},
		{op: testResize, in: "size=9999999999T", err: "more than 9223372036854775807 bytes"},
		{op: testResize, in: "bytes=1", err: `unknown argument "bytes"; it takes size=SIZE|min [unsafe=true|false]`},
		{op: testResize, in: "size=1 MaxInternalSize=2", err: `argument "size" is given twice`},
		{op: testResize, in: "1 2", err: `argument "size" is given twice`},
		{op: testResize, in: "1 size=2", err: `argument "size" is given twice`},
		{op: testResize, in: `{"size":1,"SIZE":2}`, err: `argument "size" is given twice`},
		{op: testResize, in: "size=1\nsize=2\n", err: "two lines in one request"},
		{op: testResize, in: "size=1\runsafe=1", err: "two lines in one request"},
		{op: testResize, in: "size='1\n'", err: "two lines in one request"},
		{op: testResize, in: "size=1\x00unsafe=1", err: "a NUL byte inside the request"},
		{op: testMerge, in: `{"to":"a\u0000b"}`, err: `a NUL byte inside the value of "to"`},
		{op: testMerge, in: `to="open`, err: `a quote " is not closed`},
		{op: testMerge, in: `it's`, err: `a quote ' is not closed`},
		{op: testMerge, in: `to=`, err: `to="": bad argument, want a path`},
		{op: testMerge, in: `""`, err: `to="": bad argument, want a path`},
		{op: testMerge, in: `keep=maybe`, err: `keep="maybe": bad argument, want true or false`},
		{op: testMerge, in: `keep=`, err: `keep="": bad argument`},
		{op: testCompact, in: "full", err: `"full" needs a name in front; it takes [mode=full|quick]`},
		{op: testCompact, in: "mode=2", err: `mode="2": bad argument, want full|quick`},
		{op: testCompact, in: "mode=", err: `mode="": bad argument`},
		{op: testIdentify, in: "id=123", err: `id="123": bad argument, want a GUID`},
		{op: testIdentify, in: "id={00000000-0000-0000-0000-000000000000}", err: "not all zeros"},
		{op: testPlain, in: "2", err: `"2" needs a name in front; it takes no arguments`},
		{op: testPlain, in: "1 wait=false 1", err: `"1" needs a name in front`},
		{op: testPlain, in: "wait=soon", err: `wait="soon": bad argument, want true or false`},
		{op: testPlain, in: "dryrun=1 dryrun=1", err: `argument "dryrun" is given twice`},
		{op: testResize, in: "dryrun=true", err: "resize: size is required"},
		{op: testPlain, in: "1 1", err: `"1" needs a name in front`},
		{op: testPlain, in: "force=true", err: `unknown argument "force"; it takes no arguments`},
		{op: testResize, in: `{"size":1`, err: "not a JSON object"},
		{op: testResize, in: `{"size":1}x`, err: "something follows the JSON object"},
		{op: testResize, in: `{"size":1}{}`, err: "something follows the JSON object"},
		{op: testResize, in: `{"size":[1]}`, err: `the value of "size" must be a string, a number or a boolean`},
		{op: testResize, in: `{"size":{}}`, err: `the value of "size" must be`},
		{op: testResize, in: `{"size":1e3}`, err: `size="1e3": bad argument`},
		{op: testResize, in: `{"size":-1}`, err: `size="-1": bad argument`},
		{op: testResize, in: `{size:1}`, err: "not a JSON object"},
		{op: testResize, in: `{`, err: "not a JSON object"},
	} {
		t.Run(tt.op.Name+" "+tt.in, func(t *testing.T) {
			got, err := tt.op.Parse(tt.in)
			if tt.err != "" {
				require.ErrorIs(t, err, ErrUsage)
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestParseRefusesWhatOneWriteCannotHold(t *testing.T) {
	fits := "size=1" + strings.Repeat(" ", MaxRequest-6)
	_, err := testResize.Parse(fits)
	require.NoError(t, err)
	_, err = testResize.Parse(fits + " ")
	require.ErrorIs(t, err, ErrTooLong)
	require.ErrorContains(t, err, "65537 bytes, at most 65536")
}

func TestParseWords(t *testing.T) {
	for _, tt := range []struct {
		op   *Op
		in   []string
		want Args
		err  string
	}{
		{op: testCompact, in: nil, want: Args{"Mode": "quick"}},
		{op: testPlain, in: nil, want: Args{}},
		{op: testPlain, in: []string{"run"}, want: Args{}},
		{op: testMerge, in: []string{"to=my disk\n.vhdx"}, want: Args{"DestinationPath": "my disk\n.vhdx", "Keep": false}},
		{op: testMerge, in: []string{`a\b "c"`}, want: Args{"DestinationPath": `a\b "c"`, "Keep": false}},
		{op: testResize, in: []string{"80G", "unsafe=true"}, want: Args{"MaxInternalSize": Amount{Bytes: 85899345920}, "Unsafe": true}},
		{op: testResize, in: nil, err: "resize: size is required"},
		{op: testResize, in: []string{"=1"}, err: `unknown argument ""`},
		{op: testMerge, in: []string{""}, err: `to="": bad argument`},
	} {
		t.Run(tt.op.Name+" "+strings.Join(tt.in, "|"), func(t *testing.T) {
			got, err := tt.op.ParseWords(tt.in)
			if tt.err != "" {
				require.ErrorIs(t, err, ErrUsage)
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestUsage(t *testing.T) {
	const common = " As with every operation, [wait=true|false] set to false answers as soon as the parameters are accepted, with the number of the job that goes on; [dryrun=true|false] set to true answers what would be done and changes nothing."
	require.Equal(t, "resize: . Write: size=SIZE|min [unsafe=true|false]. size (MaxInternalSize): new size, such as 40G. unsafe: cut partitions off."+common, testResize.Usage())
	require.Equal(t, "compact: . Write: [mode=full|quick]. mode: how to look for space, default quick. 1 or run takes the defaults."+common, testCompact.Usage())
	require.Equal(t, "validate: . Takes no arguments of its own: write a newline, 1 or run."+common, testPlain.Usage())
}

func FuzzParse(f *testing.F) {
	f.Add("size=40G unsafe=yes")
	f.Add(`{"size":"+1T","Unsafe":true}`)
	f.Add(`to="a \" b" keep=1`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, op := range []*Op{testResize, testMerge, testCompact, testIdentify, testPlain} {
			args, err := op.Parse(s)
			if class := Classify(err).Err; err != nil && (args != nil || class != ErrUsage && class != ErrTooLong) {
				t.Fatalf("%v with %v", err, args)
			}
			if strings.ContainsRune(args.Text("DestinationPath"), 0) || args.Amount("MaxInternalSize").Bytes < 0 {
				t.Fatalf("accepted %v", args)
			}
		}
	})
}
